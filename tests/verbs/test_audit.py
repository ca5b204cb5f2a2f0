"""``limbeck audit``: files in, table and JSON out."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from limbeck.config import build
from limbeck.errors import ConfigError, DataError
from limbeck.jobs.recipe import Display
from limbeck.verbs.audit import Audit

TEXTS = [
    "the first text is about a dog and a cat that live together in a small house by the sea",
    "the second text is about something else entirely and shares no words to speak of with others",
    "The FIRST text is about a dog, and a cat that live together in a small house by the sea!",
    "short one",
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.json"
    train.write_text("".join(json.dumps({"text": t, "y": "a"}) + "\n" for t in TEXTS))
    dev.write_text(json.dumps([TEXTS[0]]))
    return str(train), str(dev)


def run(train: str, **values: Any) -> tuple[dict[str, Any], str]:
    out = StringIO()
    report = build(Audit, {"train": train, **values}).run(Display.silent())
    report.show(Console(file=out, width=160))
    return json.loads(report.to_json()), out.getvalue()


def test_the_report_names_what_is_shared(files: tuple[str, str]) -> None:
    told, shown = run(files[0], against=[files[1]], within=True)
    assert told["counts"][files[1]] == {"exact": 1, "normalised": 1, "ngram": 2, "near": 2}
    assert told["counts"]["(itself)"] == {"normalised": 1, "near": 1}
    assert told["kept"] == 4 and told["decision"] == "list" and told["too_short"] == 1
    assert "dev.json │ exact" in shown and "train:1 = dev:0" in shown and "1 texts were not compared" in shown
    assert "2 of 4 training rows overlap with 1 of 1 rows" in shown and "every row of" in shown


def test_drop_writes_what_is_left_and_every_finding(files: tuple[str, str], tmp_path: Path) -> None:
    told, shown = run(files[0], against=[files[1]], on="drop", out=str(tmp_path / "out"))
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [row["text"] for row in kept] == [TEXTS[1], TEXTS[3]] and told["kept"] == 2 and told["dropped"] == 2
    findings = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert len(findings) == 6 and findings[0]["kind"] == "exact"
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == told
    assert "2 rows" in shown


def test_refuse_leaves_the_findings_behind(files: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 training rows of .*train.jsonl overlap with evaluation rows"):
        run(files[0], against=[files[1]], on="refuse", out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "findings.jsonl").is_file() and not (tmp_path / "out" / "kept.jsonl").exists()


def test_clean_data_is_said_to_be_clean(files: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(["quite another thing that nobody has ever written down before today"]))
    told, shown = run(files[0], against=[str(other)], compare={"kinds": ["exact", "ngram"]})
    assert told["counts"] == {} and "nothing shared with" in shown
    assert "nothing shared with (itself)" in run(str(other), within=True)[1]


def test_there_must_be_something_to_compare_with_and_fields_that_exist(files: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="name evaluation rows with 'against', or set 'within'"):
        run(files[0])
    with pytest.raises(DataError, match="no field 'txt' to audit"):
        run(files[0], within=True, fields=["txt"])


def test_a_task_reads_its_own_format(tmp_path: Path) -> None:
    poems = "\n".join(f"line {n} of a poem about number {n}" for n in range(4))
    (tmp_path / "course.txt").write_text(f"Title\n\n1\n\n{poems}\n\n2\n\nanother poem of one line only\n")
    (tmp_path / "new.json").write_text(json.dumps([poems.upper()]))
    told, _ = run(str(tmp_path / "new.json"), against=[str(tmp_path / "course.txt")], task={"kind": "sonnets"})
    assert [(f["kind"], f["other"]) for f in told["findings"]][0] == ("normalised", "sonnet:1")
    assert {f["kind"]: f["count"] for f in told["findings"]}["lines"] == 4
