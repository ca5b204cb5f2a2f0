"""``limbeck harness`` without lm-eval: options, report, run folder, comparison; and the one sentence without it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import main
from limbeck.errors import ConfigError, DataError
from limbeck.jobs import harness
from limbeck.jobs.harness import HarnessFigure
from limbeck.measure.scores import Scores
from limbeck.old_names import OldNameWarning
from tests.reference import fake_harness
from tests.reference.commands import Limbeck
from tests.reference.small_model import saved
from tests.reference.tiny_runs import run


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    monkeypatch.setattr(harness, "RUNNER", "tests.reference.fake_harness:run")


def evaluated(tmp_path: Path, name: str, *tasks: str, **over: Any) -> dict[str, Any]:
    model = saved(tmp_path / f"{name}-model", hidden_size=32 if name == "wide" else 16)
    values = {"model": str(model), "tasks": tasks, "level": 0.9, **over}
    return run("harness", out=str(tmp_path / name), **values)


def test_one_task_is_reported_as_one_of_our_own(faked: None, tmp_path: Path) -> None:
    values = evaluated(tmp_path, "narrow", "judge", shots=3, limit=8, seed=5)
    assert (values["evaluated"], values["protocol"]) == ("judge", {"task": "judge", "shots": 3, "corpus": "made"})
    assert list(values["metrics"]) == ["acc", "word_perplexity", "bits", "majority rate"]
    assert values["data"] == {"judge": {"source": "made", "hash": "", "rows": 8}}
    assert values["metrics"]["word_perplexity"]["value"] == pytest.approx(math.exp(0.5))
    assert values["metrics"]["bits"]["value"] == pytest.approx(0.5 / math.log(2))
    assert values["metrics"]["acc"]["low"] < 0.5 < values["metrics"]["acc"]["high"]
    assert [a["name"] for a in values["alarms"] if a["fired"]] == ["collapse", "majority"]
    assert values["notes"]["told"] == ["a word", "f1 is 0.25, without an interval: it is no sum over items"]
    scores = Scores.read(Path(values["scores"]))
    assert len(scores) == 8 and Path(values["scores"]).with_suffix(".predictions.json").is_file()
    asked = fake_harness.ASKED[-1]
    assert (asked.shots, asked.limit, asked.seed, asked.measuring.level) == (3, 8, 5, 0.9)


def test_several_tasks_stand_side_by_side_and_by_themselves(faked: None, tmp_path: Path) -> None:
    values = evaluated(tmp_path, "narrow", "one", "two")
    assert "one: acc" in values["metrics"] and "two: acc" in values["metrics"] and values["scores"] is None
    assert values["parts"]["two"]["metrics"]["acc"] == values["metrics"]["two: acc"]
    assert values["protocol"] == {name: {"task": name, "shots": 0, "corpus": "made"} for name in ("one", "two")}
    assert {a["name"] for a in values["alarms"]} >= {"one: collapse", "two: collapse"}
    assert json.loads((tmp_path / "narrow" / "report.json").read_text()) == values


def test_runs_are_compared_by_the_figures_of_their_reports(faked: None, tmp_path: Path) -> None:
    evaluated(tmp_path, "narrow", "one", "two"), evaluated(tmp_path, "wide", "one", "two")
    runs = {"run_a": str(tmp_path / "narrow"), "run_b": str(tmp_path / "wide"), "part": "two"}
    found = run("compare", resamples=200, **runs)["comparisons"]
    assert list(found) == ["acc", "word_perplexity", "bits", "majority rate"]
    assert found["acc"]["difference"] == pytest.approx(0.5) and found["bits"]["difference"] == 0
    evaluated(tmp_path, "other", "one", "two", shots=2)
    with pytest.raises(ConfigError, match="measured in different ways .shots 0 and 2"):
        run("compare", **{**runs, "run_b": str(tmp_path / "other")})


def test_a_finished_run_is_not_measured_again(faked: None, tmp_path: Path) -> None:
    first = evaluated(tmp_path, "narrow", "one")
    calls = len(fake_harness.ASKED)
    assert evaluated(tmp_path, "narrow", "one") == first and len(fake_harness.ASKED) == calls


def test_local_rows_are_named_in_the_report(faked: None, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\na,b\nc,d\n")
    values = evaluated(tmp_path, "narrow", "one", rows={"one": str(tmp_path / "rows.csv")})
    assert values["data"]["one"]["rows"] == 2 and len(values["data"]["one"]["hash"]) == 64
    with pytest.raises(DataError, match="absent.csv does not exist"):
        evaluated(tmp_path, "other", "one", rows={"one": str(tmp_path / "absent.csv")})


def test_a_study_has_arms_of_it(faked: None, tmp_path: Path) -> None:
    saved(tmp_path / "m"), saved(tmp_path / "w", hidden_size=32)
    (tmp_path / "rows.csv").write_text("question,answer\na,b\nc,d\n")
    common = {"tasks": ["one"], "rows": {"one": str(tmp_path / "rows.csv")}}
    arms = {n: {"verb": "harness", "values": {"model": str(tmp_path / n)}} for n in ("m", "w")}
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"arms": arms, "common": common, "compare": [["w", "m"]]}))
    values = run("study", plan=str(plan), out=str(tmp_path / "study"))
    assert values["comparisons"][0]["difference"] == pytest.approx(0.5)
    assert "acc" in (tmp_path / "study" / "study.md").read_text()
    plan.write_text(json.dumps({"arms": arms, "common": {"tasks": ["one", "two"]}}))
    with pytest.raises(ConfigError, match="arm 'm' has several tasks of the harness"):
        run("study", plan=str(plan), out=str(tmp_path / "several"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to measure on: name rows with data, or tasks with harness"),
        ({"harness": ["a"], "data": "d.csv"}, "data belongs to a task of this project's own"),
        ({"harness": ["a"], "task": {"kind": "qa"}}, "task belongs to a task of this project's own"),
        ({"harness": ["a"], "probes": "off"}, "probes belongs"),
        ({"harness": ["a"], "measuring": {"generate": False}}, "generate belongs"),
        ({"data": "d.csv", "harness_shots": 2}, "harness_shots needs tasks: name them with harness"),
    ],
)
def test_what_the_chosen_way_does_not_read_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("evaluate", model="m", **values)


def test_without_lm_eval_it_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    code = main(["harness", str(saved(tmp_path / "m")), "sst2,gsm8k", "--json"])
    said = capsys.readouterr()
    assert code == 2 and json.loads(said.out)["exit_code"] == 2
    assert "tasks of the harness need lm-eval, which is not installed: pip install 'limbeck[harness]'" in said.err


def test_evaluate_with_harness_is_an_earlier_name(faked: None, tmp_path: Path, limbeck: Limbeck) -> None:
    """It warns, measures the same, and finds the run that an earlier version made by it."""
    model = saved(tmp_path / "m")
    flags = ["--harness", "one,two", "--harness-shots", 2, "--limit", 8, "--out", tmp_path / "run", "--json", "--quiet"]
    with pytest.warns(OldNameWarning, match="'evaluate --harness' is now called 'limbeck harness'"):
        old = json.loads(limbeck("evaluate", model, *flags).out)
    asked = fake_harness.ASKED[-1]
    same = ["--shots", 2, "--limit", 8, "--out", tmp_path / "new", "--json", "--quiet"]
    new = json.loads(limbeck("harness", model, "one", "two", *same).out)
    assert asked == fake_harness.ASKED[-1] and asked.tasks == ("one", "two")
    assert old["metrics"] == new["metrics"] and (old["verb"], new["verb"]) == ("evaluate", "harness")
    with pytest.warns(OldNameWarning):
        assert json.loads(limbeck("evaluate", model, *flags).out) == old
    assert limbeck("compare", tmp_path / "run", tmp_path / "new", "--part", "two").code == 0


def test_tasks_are_named(limbeck: Limbeck) -> None:
    said = limbeck("harness", "m")
    assert said.code == 2 and "'harness' needs TASKS: write limbeck harness TASKS" in said.err


def test_a_figure_says_what_its_scores_lack() -> None:
    figure = HarnessFigure(name="acc", form="mean", columns=("acc",))
    with pytest.raises(DataError, match="have no column 'acc', of which 'acc' is made"):
        figure.statistic(Scores.of(["a"], other=[1.0]))
