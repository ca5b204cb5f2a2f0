from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import yaml

from limbeck.config import build
from limbeck.errors import BusyError, Interrupted, RunError
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.study.export import flat_rows
from limbeck.study.plan import StudyPlan
from limbeck.study.study import Study
from limbeck.study.workers import announce, run_arms, status
from tests.reference.tiny_runs import PRETRAIN

MEASURED = {"data": "toy:stories", "part": "test", "limit": 20, "measuring": {"generate": False}}
ARMS = {
    "teacher": {"verb": "pretrain", "values": {**PRETRAIN, "limit": 40}},
    "broken": {"verb": "evaluate", "values": {**MEASURED, "model": "no/such/folder/at/all"}},
    "after": {"verb": "evaluate", "values": {**MEASURED, "model": "@broken"}},
    "before": {"verb": "evaluate", "values": {**MEASURED, "model": "@teacher"}},
}


def plan_file(folder: Path, **over: Any) -> Path:
    file = folder / "plan.yaml"
    common = {"dtype": "fp32", "measuring": {"generate": False}}
    file.write_text(yaml.safe_dump({"arms": ARMS, "compare": [["broken", "before"]], "common": common} | over))
    return file


def test_a_failed_arm_is_told_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = plan_file(tmp_path)
    states = Study(plan=str(file), out=str(out), action="status").run(Display.silent()).values["runs"]
    assert {r["state"] for r in states} == {"not begun"}
    found = Study(plan=str(file), out=str(out)).run(Display.silent()).values
    assert set(found["arms"]) == {"teacher", "before"} and set(found["failed"]) == {"broken", "after"}
    assert "no/such/folder" in found["failed"]["broken"] and found["failed"]["after"] == "needs 'broken', which failed"
    assert found["comparisons"] == [], "what needs a failed arm is left out"
    assert "broken has no row: seed 0" in (out / "study.md").read_text()
    rows = list(csv.DictReader((out / "study.csv").read_text().splitlines()))
    assert [(r["arm"], r["state"]) for r in rows][-2:] == [("broken", "failed"), ("after", "failed")]
    assert float(rows[0]["bytes"]) > 0 and rows[-1]["reason"]
    table = pq.read_table(out / "study.parquet")
    assert table.num_rows == len(rows) and "nats per token" in table.column_names
    states = Study(plan=str(file), out=str(out), action="status").run(Display.silent()).values["runs"]
    assert [r["state"] for r in states if r["arm"] == "teacher"] == ["finished"]
    again = Study(plan=str(file), out=str(out), action="table").run(Display.silent()).values
    assert set(again["arms"]) == {"teacher", "before"}


def test_a_shared_store_runs_an_arm_of_equal_content_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arms = {k: ARMS[k] for k in ("teacher", "before")}
    (tmp_path / "b").mkdir()
    first = plan_file(tmp_path, arms=arms, compare=[])
    renamed = {"origin": arms["teacher"], "x": {**arms["before"], "values": {**MEASURED, "model": "@origin"}}}
    second = plan_file(tmp_path / "b", arms=renamed, compare=[])
    one = Study(plan=str(first), out=str(tmp_path / "o1"), store=str(store)).run(Display.silent()).values
    stamps = {f: f.stat().st_mtime_ns for f in store.glob("*/report.json")}
    two = Study(plan=str(second), out=str(tmp_path / "o2"), store=str(store)).run(Display.silent()).values
    assert len(stamps) == 2 and {f: f.stat().st_mtime_ns for f in store.glob("*/report.json")} == stamps
    assert one["arms"]["before"]["runs"] == two["arms"]["x"]["runs"]


class Once(Recipe):
    """Finishes, waits for another worker, fails or is stopped, as its seed says."""

    verb: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "test"
    busy: int = 0
    calls: ClassVar[list[int]] = []

    def run(self, session: Display) -> Report:
        Once.calls.append(self.seed)
        if self.seed == 3:
            raise Interrupted("stopped")
        if Once.calls.count(self.seed) <= self.busy:
            raise BusyError("held")
        return Report({"seed": self.seed})


def test_a_run_that_another_worker_holds_is_come_back_to() -> None:
    Once.calls.clear()
    arms = {n: {"verb": "evaluate", "values": {"model": m}} for n, m in (("a", "x"), ("b", "@a"), ("c", "y"))}
    plan = build(StudyPlan, {"arms": arms}, "plan")
    recipes = {n: {0: Once(seed=i, busy=busy)} for i, (n, busy) in enumerate((("a", 2), ("b", 0), ("c", 0)))}
    waits: list[float] = []
    found = run_arms(plan, recipes, Display.silent(), waits.append)
    assert {n: r[0]["seed"] for n, r in found.reports.items()} == {"a": 0, "b": 1, "c": 2}
    assert Once.calls == [0, 2, 0, 0, 1], "c goes on while a is held; b waits for a"
    assert len(waits) == 1 and found.failed == {}
    with pytest.raises(Interrupted):
        run_arms(plan, {"a": {0: Once(seed=3)}}, Display.silent())


def test_the_plan_is_told_before_the_start(tmp_path: Path) -> None:
    recipes = {"a": {0: Once(out=str(tmp_path / "a")), 1: Once(out=str(tmp_path / "b"))}}
    (tmp_path / "a").mkdir()
    for name in ("recipe.yaml", "report.json"):
        (tmp_path / "a" / name).write_text(json.dumps({"x": 1}))
    assert announce(recipes) == "plan: 2 runs, 1 of them finished; to do: 1 evaluate"
    assert [s for _, _, s in status(recipes)] == ["finished", "not begun"]


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    file = plan_file(tmp_path, arms={"broken": ARMS["broken"]}, compare=[])
    with pytest.raises(RunError, match="no arm of the study has a report: seed 0"):
        Study(plan=str(file), out=str(tmp_path / "o")).run(Display.silent())
    assert flat_rows({}, {}) == []
