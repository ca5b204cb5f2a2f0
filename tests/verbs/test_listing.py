from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.data.toy.table import TOYS
from limbeck.tasks.table import TASKS
from limbeck.techniques.table import TECHNIQUES
from tests.reference.tiny_runs import run


def test_names_of_tables() -> None:
    assert set(run("list", what="toy")["names"]) == {f"toy:{name}" for name in TOYS}
    assert run("list", what="tasks")["names"].keys() == TASKS.keys()
    found = run("list", what="techniques")["names"]
    assert found.keys() == TECHNIQUES.keys() and all(found.values())


def test_runs_below_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("list", what="runs")["names"] == {}
    for name, done in (("a", True), ("study/arm/seed-0", False)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("seed: 0\n", encoding="utf-8")
        if done:
            (folder / "report.json").write_text("{}", encoding="utf-8")
    assert run("list", what="runs")["names"] == {"runs/a": "finished", "runs/study/arm/seed-0": "not finished"}
