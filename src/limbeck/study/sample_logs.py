"""Sample logs of lm-evaluation-harness (``--log_samples``): per-item scores and answers of a run made elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.measure.scores import Scores

__all__ = ["SampleLog", "read_samples"]

_NOT_SCORES = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "id")


@dataclass(frozen=True, slots=True)
class SampleLog:
    """One run's items.

    Attributes:
        scores: every numeric metric, by item.
        texts: item -> generated text, where the task generates.
        prompts: SHA-256 of all items' prompts and targets: equal for two runs of one protocol.
    """

    scores: Scores
    texts: Mapping[str, str]
    prompts: str


def read_samples(path: Path) -> SampleLog:
    """Read ``samples_TASK_TIME.jsonl``.

    Where a task scores several filters, the rows of the first are taken.

    Raises:
        DataError: no such file, not JSON lines, or no metric in it.
    """
    rows, texts, prompts, first = [], {}, {}, None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path} is no sample log: there is no file of that name here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"sample log {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line, number, path)
        first = row.get("filter") if first is None else first
        if row.get("filter") != first:
            continue
        item = str(row["doc_id"])
        scores = {k: float(v) for k, v in row.items() if k not in _NOT_SCORES and isinstance(v, int | float)}
        if not scores:
            raise DataError(f"line {number} of sample log {path} has no metric: log samples of a scored task")
        rows.append({"id": item, **scores})
        hashes = [str(row.get(k, "")) for k in ("doc_hash", "prompt_hash", "target_hash")]
        prompts[item] = hashes if any(hashes) else [json.dumps(row.get("doc"), sort_keys=True, default=str)]
        answers = row.get("filtered_resps")
        if isinstance(answers, list) and len(answers) == 1 and isinstance(answers[0], str):
            texts[item] = answers[0]
    if not rows:
        raise DataError(f"sample log {path} holds no items: run lm-eval with --log_samples")
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()
    return SampleLog(Scores.of_rows(rows, str(path)), texts if len(texts) == len(rows) else {}, digest)


def _row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "doc_id" not in row:
        raise DataError(f"line {number} of sample log {path} is no item of lm-eval: it needs a 'doc_id'")
    return row
