from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display
from limbeck.study.candidates import Workshop
from limbeck.study.fit import read_search
from limbeck.study.study import Study, _planned, read_plan
from tests.reference.tiny_runs import PRETRAIN

PLAN = {
    "title": "tiny",
    "seeds": [0, 1],
    "common": {"dtype": "fp32", "limit": 40, "measuring": {"generate": False}},
    "arms": {
        "teacher": {"verb": "pretrain", "once": True, "values": PRETRAIN},
        "taught": {
            "verb": "distill",
            "label": "taught",
            "values": {
                "teacher": "@teacher",
                "data": "toy:stories",
                "techniques": [{"kind": "depth", "layers": 1}],
                "batch_size": 8,
                "train": {"steps": 2},
            },
        },
        "before": {"verb": "evaluate", "values": {"model": "@teacher", "data": "toy:stories", "part": "test"}},
    },
    "compare": [["taught", "before"]],
}


def test_arms_over_seeds_make_one_table(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(PLAN))
    study = Study(plan=str(file), out=str(tmp_path / "out"))
    report = study.run(Display.silent())
    assert [len(report.values["arms"][n]["runs"]) for n in ("teacher", "taught", "before")] == [1, 2, 2]
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    assert written["comparisons"][0]["seeds"] == [2, 2]
    assert "taught" in (tmp_path / "out" / "study.md").read_text()
    html = (tmp_path / "out" / "study.html").read_text()
    assert "taught" in html and "train/loss while training" in html
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*/seed-*/report.json")}
    again = study.run(Display.silent())
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps, "finished runs are read, not repeated"
    assert again.values["comparisons"] == report.values["comparisons"]


def test_every_value_is_checked_before_anything_runs(tmp_path: Path) -> None:
    broken = {**PLAN, "arms": {**PLAN["arms"], "last": {"verb": "finetune", "values": {"modle": "x"}}}}  # type: ignore[dict-item]
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(broken))
    with pytest.raises(ConfigError, match="modle.*did you mean 'model'"):
        Study(plan=str(file), out=str(tmp_path / "out")).run(Display.silent())
    assert not (tmp_path / "out").exists()


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="key: value"):
        read_plan(tmp_path / "list.yaml")
    (tmp_path / "recipe.yaml").write_text("model: m\ndata: d\n")
    with pytest.raises(ConfigError, match="has no 'arms': a recipe of one verb is run by limbeck VERB --config"):
        read_plan(tmp_path / "recipe.yaml")
    (tmp_path / "torn.yaml").write_text("arms: {a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_plan(tmp_path / "torn.yaml")


FILES = sorted(Path(__file__).parents[2].glob("studies/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_shipped_studies_and_searches_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "somewhere")
    if "pipelines" in yaml.safe_load(text):
        Workshop(read_search(file), tmp_path, 0, Display.silent()).check()
    else:
        plan = read_plan(file)
        assert sum(len(runs) for runs in _planned(plan, Path("x"), None).values()) >= len(plan.arms)


def test_a_chart_of_a_figure_that_no_arm_measures_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**PLAN, "plots": [["nats per token", "nats per wrod"]]}))
    with pytest.raises(ConfigError, match="no arm measures 'nats per wrod'.*did you mean 'nats per word'"):
        Study(plan=str(file), out=str(tmp_path / "out")).run(Display.silent())
