"""Audit and probes around a run: what is chosen, what reaches the loop and the report."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport
from limbeck.data.rows import Row, Rows
from limbeck.decode.settings import Decoding
from limbeck.jobs.checks import Checks, audited, encoded, fired_first, show_alarms
from limbeck.jobs.source import Parts
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.text import Text
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level
from tests.reference.tiny_runs import pretrained, run

NO_ROWS = EncodingReport(rows=10, examples=10, tokens=100, target_tokens=100)


def examples(count: int, length: int = 24) -> list[Example]:
    ids = torch.randint(1, 280, (count, length)).numpy().astype(np.int32)
    return [Example(i, str(i), row, np.ones(length, np.bool_)) for i, row in enumerate(ids)]


def checks(level: Any, **more: Any) -> Checks:
    return Checks.of(level, byte_level(), examples(20), Decoding(max_new_tokens=6), **more)


def names(alarms: list[dict[str, Any]]) -> set[str]:
    return {a["name"] for a in alarms}


def test_off_asks_nothing_but_the_data() -> None:
    off, model = checks("off", base=decoder()), decoder()
    assert off.evaluations() == [] and off.alarms(model) == []
    assert names(off.told(model, NO_ROWS, [])["alarms"]) == {"cut-rows"}
    assert encoded(Text(), Rows.of([Row("a", {"text": "x"})], "s"), byte_level(), 16, "off") == []


def test_quick_asks_the_model_in_the_loop_and_all_at_the_end() -> None:
    base = decoder()
    some = checks("quick", base=base, train=examples(5), general=examples(3))
    model = copy.deepcopy(base)
    assert {n.removeprefix("probe/") for n in some.evaluations()[0](model, 0)} == {
        "calibration", "generality", "general-text",
    }  # fmt: skip
    assert {"generality", "copied-run", "loops", "echo"} <= names(some.alarms(model))
    assert len(some.prompts) == 10  # every second of twenty: sixteen are wanted at most


def test_full_lets_it_write_in_the_loop_too() -> None:
    measured = checks("full", train=examples(5)).evaluations()[0](decoder(), 0)
    assert {"probe/copied-run", "probe/loops", "probe/calibration"} <= measured.keys()
    assert "probe/generality" not in measured  # random weights have no generality to lose


def parts(train: list[str], valid: list[str]) -> Parts:
    def rows(texts: list[str], name: str) -> Rows:
        return Rows.of((Row(f"{name}{i}", {"text": t}) for i, t in enumerate(texts)), name)

    return Parts(rows(train, "t"), rows(valid, "v"), None)


def test_the_audit_of_a_run_lists_drops_or_is_off() -> None:
    leak, fine = "a text that stands in both of the sets", "a text that stands in training alone here"
    both = parts([leak, fine], [leak])
    same, found = audited(both, "off", Text())
    assert same is both and found is None
    same, found = audited(both, "list", Text())
    assert found is not None and same.train is both.train
    rung = checks("off", audit=found).told(decoder(), NO_ROWS, [])
    assert rung["alarms"][0]["name"] == "leakage" and rung["alarms"][0]["fired"]
    assert "1 of 2 training rows overlap with 1 of 1 rows of valid" in rung["alarms"][0]["sentence"]
    assert rung["audit"]["counts"]["valid"]["exact"] == 1
    fewer, found = audited(both, "drop", Text())
    assert [r.id for r in fewer.train] == ["t1"]
    silent = checks("off", audit=found).told(decoder(), NO_ROWS, [])["alarms"][0]
    assert not silent["fired"] and silent["sentence"].endswith("; 1 training rows were dropped")


def test_short_questions_are_compared_by_the_fields_the_task_needs() -> None:
    some = Rows.of([Row("a", {"question": "2+2", "answer": "4", "note": "three words long"})], "s")
    _, found = audited(Parts(some, some, None), "list", QuestionAnswering())
    assert found is not None and found.fields == ("question", "answer")


def test_rows_cut_to_the_context_ring() -> None:
    report = EncodingReport(10, 10, 100, 100, truncated=("a",), too_long=("b",))
    (cut,) = checks("off").told(decoder(), report, [])["alarms"]
    assert cut["fired"] and cut["value"] == 0.2 and "2 of 10 training rows were longer" in cut["sentence"]


def test_fired_alarms_come_first_and_are_shown() -> None:
    def alarm(name: str, fired: bool) -> dict[str, Any]:
        return {"name": name, "fired": fired, "sentence": f"{name} is told"}

    some = fired_first([alarm("a", False), alarm("b", True), alarm("c", False)])
    assert [a["name"] for a in some] == ["b", "a", "c"]
    assert [str(line) for line in show_alarms(some)] == ["alarm: b: b is told"]
    assert [str(line) for line in show_alarms(some[1:])] == ["alarms: none of 2"]
    assert show_alarms([]) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks") / "base"
    pretrained(folder)
    return folder


def test_a_run_tells_its_alarms_and_its_audit(base: Path, tmp_path: Path) -> None:
    fresh = json.loads((base / "report.json").read_text())
    assert {"leakage", "cut-rows", "copied-run"} <= names(fresh["alarms"])
    assert "generality" not in names(fresh["alarms"])
    assert fresh["audit"]["decision"] == "list" and set(fresh["audit"]["against"]) == {"valid", "test"}
    general = tmp_path / "general.txt"
    general.write_text("the sea is wide and the night is long " * 4)
    tuned = run(
        "finetune", model=str(base), data="toy:stories", limit=40, out=str(tmp_path / "t"), dtype="fp32",
        train={"steps": 2, "log_every": 1}, measuring={"generate": False}, general=str(general),
    )  # fmt: skip
    assert {"generality", "general-text"} <= names(tuned["alarms"])
    lines = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert any("probe/generality" in line for line in lines)


def test_an_evaluation_tells_its_alarms(base: Path) -> None:
    measuring = {"generate": False}
    told = run("evaluate", model=str(base), data="toy:stories", limit=20, measuring=measuring)
    assert {"loops", "calibration"} <= names(told["alarms"])
    off = run("evaluate", model=str(base), data="toy:stories", limit=20, measuring=measuring, probes="off")
    assert off["alarms"] == []
