"""Make a ``question,answer`` CSV from an Alpaca-style JSON file: rows without input, short answers, in file order.

Usage: python scripts/instructions_to_qa.py alpaca.json qa.csv --rows 3000 --answer-words 40
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rows", type=int, default=3000, help="most rows")
    parser.add_argument("--answer-words", type=int, default=40, help="longest answer, in words")
    parser.add_argument("--question-words", type=int, default=40, help="longest question, in words")
    given = parser.parse_args()
    kept = []
    for row in json.loads(given.source.read_text(encoding="utf-8")):
        question, answer = row["instruction"].strip(), row["output"].strip()
        if row["input"].strip() or not question or not answer:
            continue
        if len(answer.split()) > given.answer_words or len(question.split()) > given.question_words:
            continue
        kept.append((question, answer))
    with given.target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("question", "answer"))
        writer.writerows(kept[: given.rows])
    print(f"{min(len(kept), given.rows)} of {len(kept)} rows written to {given.target}")


if __name__ == "__main__":
    main()
