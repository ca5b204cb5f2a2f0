from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.config import Config
from limbeck.errors import DataError
from limbeck.jobs.recipe import Display
from limbeck.run import Run
from limbeck.study.report import WriteReport
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.table import AnyTask
from tests.reference.finished_arms import arm


class Measured(Config):
    """As far as a report reads a recipe."""

    task: AnyTask = QuestionAnswering()


def run(folder: Path, mean: float, disk_bytes: int) -> str:
    made = arm(folder.name, mean, disk_bytes=disk_bytes, spread=0.001)
    with Run.create(folder, Measured()) as to:
        file = to.scores / "test.jsonl"
        made.scores[0].write(file)
        to.finish({**made.reports[0], "run": str(folder), "scores": str(file), "protocol": {"context": 8}})
    return str(folder)


def test_runs_become_one_page_with_an_answer(tmp_path: Path) -> None:
    base, small = run(tmp_path / "base", 1.0, 4_000_000), run(tmp_path / "small", 1.0, 1_000_000)
    values = WriteReport(runs=(base, small), out=str(tmp_path / "out")).run(Display.silent()).values
    text = Path(values["page"]).read_text()
    assert "small, 1.00 MB (25%)" in values["answers"][0] and "Quiet failures" in text
    alone = WriteReport(runs=(base,)).run(Display.silent()).values
    assert Path(alone["page"]) == tmp_path / "base" / "report.html" and alone["answers"] == []


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        WriteReport(runs=(str(tmp_path),)).run(Display.silent())
    base = run(tmp_path / "base", 1.0, 1)
    with pytest.raises(DataError, match="one name"):
        WriteReport(runs=(base, base)).run(Display.silent())
