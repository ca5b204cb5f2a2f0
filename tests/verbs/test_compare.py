from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from limbeck.config import Config
from limbeck.errors import ConfigError, DataError
from limbeck.jobs.comparison import evaluated, judged, read_predictions
from limbeck.jobs.recipe import Display, Report
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean
from limbeck.measure.stats import compare
from limbeck.run import Run
from limbeck.tasks.qa import QuestionAnswering
from limbeck.verbs.compare import Compare

NLL, BLEU = QuestionAnswering().statistics(["nll", "tokens", "bleu"])[:2]


class Measured(Config):
    """As far as a comparison reads a recipe."""

    task: dict[str, Any] | None = {"kind": "qa"}


def scores(shift: float, n: int = 60, seed: int = 0) -> Scores:
    """Items whose nats a token lie ``shift`` above a shared base, with a little noise of their own."""
    base, own = np.random.default_rng(7), np.random.default_rng(seed)
    tokens = base.integers(5, 40, n).astype(float)
    nats = tokens * (base.uniform(1, 3, n) + shift + own.normal(0, 0.02, n))
    of_answers = {"bleu": 50 - 10 * nats / tokens, "f1": np.ones(n), "exact": np.zeros(n), "ended": np.ones(n)}
    return Scores.of([f"item-{i}" for i in range(n)], nll=nats, tokens=tokens, **of_answers)


def run(
    folder: Path,
    parts: Mapping[str, Scores],
    protocol: Mapping[str, Any] | None = None,
    evaluated: str = "test",
    **recipe: Any,
) -> str:
    with Run.create(folder, Measured(**recipe)) as made:
        for part, some in parts.items():
            some.write(made.scores / f"{part}.jsonl")
        made.finish({"evaluated": evaluated, "protocol": protocol or {"context": 128}})
    return str(folder)


def go(a: str, b: str, **flags: Any) -> Report:
    return Compare(run_a=a, run_b=b, **{"resamples": 400, **flags}).run(Display.silent())


def text_of(report: Report) -> str:
    with open("/dev/null", "w") as nowhere:
        console = Console(width=200, record=True, file=nowhere)
        report.show(console)
    return console.export_text()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    a = run(tmp_path / "alone", {"test": scores(0.3), "valid": scores(0.0)})
    return a, run(tmp_path / "taught", {"test": scores(0.1, seed=1), "valid": scores(0.0)})


def test_every_figure_that_both_report_is_compared_by_item(pair: tuple[str, str]) -> None:
    report = go(*pair)
    found = report.values["comparisons"]
    assert list(found) == [NLL.name, "perplexity", "bleu", "f1", "exact", "ended"]
    wanted = compare(scores(0.3), scores(0.1, seed=1), NLL, resamples=400, seed=0)
    for key in ("a", "b", "difference", "low", "high", "p", "items"):
        assert found[NLL.name][key] == getattr(wanted, key)
    assert found[NLL.name]["better"] == found["bleu"]["better"] == "b"
    assert found[NLL.name]["verdict"].startswith("taught is better by 0.2")
    assert found[NLL.name]["p_holm"] >= found[NLL.name]["p"]
    shown = text_of(report)
    assert (
        "alone against taught (difference: taught - alone)" in shown
        and f"{NLL.name}: taught is better by" in shown
        and "no difference shown" in shown
    )
    json.loads(report.to_json())


def test_no_difference_is_said_in_words(tmp_path: Path) -> None:
    a, b = (run(tmp_path / n, {"test": scores(0.0, seed=s)}) for s, n in enumerate("ab"))
    report = go(a, b, metric=NLL.name, margin=0.2)
    assert list(report.values["comparisons"]) == [NLL.name]
    assert report.values["comparisons"][NLL.name]["verdict"].startswith("equivalent within 0.2")
    assert "no difference shown" in text_of(go(a, b))


def test_the_part_is_test_before_valid_unless_named(pair: tuple[str, str]) -> None:
    assert go(*pair).values["a"]["scores"].endswith("test.jsonl")
    assert go(*pair, part="valid").values["a"]["scores"].endswith("valid.jsonl")


def test_runs_with_one_evaluation_each_are_compared_whatever_it_is_called(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", {"test": scores(0)}), run(tmp_path / "b", {"all": scores(0)}, evaluated="all")
    assert go(a, b).values["b"]["scores"].endswith("all.jsonl")
    loose = tmp_path / "loose.jsonl"
    scores(0).write(loose)
    assert go(str(loose), b, metric="bleu", better="higher").values["b"]["scores"].endswith("all.jsonl")


def test_a_protocol_speaks_only_of_its_own_part(tmp_path: Path) -> None:
    parts = {"test": scores(0.1), "valid": scores(0)}
    a, b = (run(tmp_path / f"{c}", parts, {"context": c}) for c in (128, 256))
    assert go(a, b, part="valid").values["protocol_differences"] == []
    with pytest.raises(ConfigError, match="different ways"):
        go(a, b, part="test")


def test_a_run_without_a_task_needs_a_figure(tmp_path: Path) -> None:
    a, b = (run(tmp_path / n, {"test": scores(s)}, task=None) for n, s in (("a", 0.2), ("b", 0.0)))
    with pytest.raises(
        ConfigError, match="share no figure of a task: name one with --metric, made of nll, tokens, bleu"
    ):
        go(a, b)
    assert go(a, b, metric="nll/tokens", better="lower").values["comparisons"]["nll/tokens"]["better"] == "b"
    with pytest.raises(ConfigError, match="'task' in the recipe of .* is of kind"):
        go(a, run(tmp_path / "c", {"test": scores(0)}, task={"kind": "chess"}))


def test_files_of_scores(tmp_path: Path, pair: tuple[str, str]) -> None:
    loose = tmp_path / "loose.jsonl"
    scores(0.5).write(loose)
    inside = str(Path(pair[1]) / "scores" / "test.jsonl")
    report = go(str(loose), inside, metric="nll/tokens", better="lower", samples=0)
    assert report.values["comparisons"]["nll/tokens"]["better"] == "b"
    assert (report.values["a"]["name"], report.values["b"]["name"]) == ("loose.jsonl", "test.jsonl")
    assert report.values["changed"] == []
    assert go(str(loose), str(loose), metric="bleu", better="higher").values["a"]["name"].endswith("(first)")
    both_inside = [str(Path(p) / "scores" / "test.jsonl") for p in pair]
    report = go(*both_inside)
    assert list(report.values["comparisons"]) == [NLL.name, "perplexity", "bleu", "f1", "exact", "ended"]
    assert report.values["b"]["name"] == "taught/scores/test.jsonl"


def test_the_items_that_changed_most_come_with_what_was_generated(pair: tuple[str, str]) -> None:
    for folder, word in zip(pair, ("old", "new"), strict=True):
        texts = {f"item-{i}": f"{word} text {i} [/b] " + "x" * 50 for i in range(60)}
        (Path(folder) / "scores" / "test.predictions.json").write_text(json.dumps(texts))
    assert go(*pair).values["changed"] == [] and "changed most" not in text_of(go(*pair))  # only where asked for
    report = go(*pair, samples=3, width=30)
    changed = report.values["changed"]
    one, two = scores(0.3), scores(0.1, seed=1)
    change = two["nll"] / two["tokens"] - one["nll"] / one["tokens"]
    order = sorted(range(60), key=lambda i: -abs(change[i]))[:3]
    assert [item["id"] for item in changed] == [f"item-{i}" for i in order]
    assert [item["change"] for item in changed] == pytest.approx([change[i] for i in order])
    assert {item["better"] for item in changed} == {"b"}
    assert changed[0]["prediction_b"].startswith(f"new text {order[0]} [/b] x")
    shown = text_of(report)
    assert f"alone: old text {order[0]} " in shown and f"taught: new text {order[0]} " in shown
    assert "[/b]" in shown and "x" * 30 not in shown and "..." in shown


def test_unchanged_items_are_not_shown(tmp_path: Path) -> None:
    a, b = (run(tmp_path / n, {"test": scores(0.0)}) for n in "ab")
    assert go(a, b, samples=3).values["changed"] == []
    assert "changed most" not in text_of(go(a, b, samples=3))


def test_different_protocols_are_refused_unless_told(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {"test": scores(0.1)}, protocol={"context": 128, "stride": 64, "only": 1})
    b = run(tmp_path / "b", {"test": scores(0.0)}, protocol={"context": 256, "stride": 64})
    with pytest.raises(ConfigError, match=r"measured in different ways \(context 128 and 256\)"):
        go(a, b)
    assert go(a, b, any_protocol=True).values["protocol_differences"] == ["context 128 and 256"]


def test_different_items_are_refused_or_cut(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {"test": scores(0.3)})
    b = run(tmp_path / "b", {"test": scores(0.1, n=60).select([f"item-{i}" for i in range(40)])})
    with pytest.raises(DataError, match="only in the first"):
        go(a, b)
    assert go(a, b, pairing="shared").values["comparisons"][NLL.name]["items"] == 40
    unpaired = go(a, b, pairing="none").values
    assert unpaired["comparisons"][NLL.name]["pairing"] == "none" and unpaired["changed"] == []


def test_the_report_can_be_kept(tmp_path: Path, pair: tuple[str, str]) -> None:
    report = go(*pair, out=str(tmp_path / "o"))
    assert json.loads((tmp_path / "o" / "comparison.json").read_text()) == json.loads(report.to_json())


@pytest.mark.parametrize(
    ("flags", "error", "sentence"),
    [
        ({"metric": "nlll"}, ConfigError, "no figure or score is called 'nlll' in .*; did you mean 'nll'"),
        ({"metric": "nll"}, ConfigError, "say with --better"),
        ({"metric": "nll/tokens/nll", "better": "lower"}, ConfigError, "COLUMN or COLUMN/COLUMN"),
        ({"part": "train"}, DataError, r"has no scores of 'train' \(it has: test, valid\)"),
    ],
)
def test_bad_input(pair: tuple[str, str], flags: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        go(*pair, **flags)


def test_what_is_no_evaluation(tmp_path: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="absent does not exist: name a run folder or a file of scores"):
        go(pair[0], str(tmp_path / "absent"))
    empty = run(tmp_path / "empty", {})
    with pytest.raises(
        DataError,
        match=r"which evaluation of .*alone is to be compared with .*It has: test, valid; name it with --part",
    ):
        go(pair[0], empty)
    with pytest.raises(DataError, match="holds no recipe.yaml"):
        go(pair[0], str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_predictions_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.predictions.json").write_text(text)
    with pytest.raises(DataError, match="is not a JSON object of predictions"):
        read_predictions(tmp_path / "x.jsonl")


def test_a_further_figure_must_outlast_holm_and_the_main_one_stands_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    drawn = {name: rng.normal(size=30) for name in ("main", "second", "third")}
    noise = {name: (x - x.mean()) / x.std(ddof=1) + 2.3 / np.sqrt(30) for name, x in drawn.items()}  # t is 2.3
    base = rng.normal(size=30)
    ids = [str(i) for i in range(30)]
    Scores.of(ids, **{name: base for name in noise}).write(tmp_path / "a.jsonl")
    Scores.of(ids, **{name: base + moved for name, moved in noise.items()}).write(tmp_path / "b.jsonl")
    figures = tuple(mean(name) for name in noise)
    one, two = (replace(evaluated(str(tmp_path / n), None), figures=figures) for n in ("a.jsonl", "b.jsonl"))
    recipe = Compare(run_a="a", run_b="b")
    found = judged(recipe, one, two)
    assert found["main"].family == 1 and found["main"].p_adjusted == found["main"].p
    assert {c.family for n, c in found.items() if n != "main"} == {2}
    assert [n for n, c in found.items() if c.p <= 0.05 < c.p_adjusted], "Holm must take one away here"
    for c in found.values():
        assert (c.better is None) == (c.p_adjusted > 0.05)


def test_how_many_items_would_show_the_difference_is_told_where_it_is_not_shown(tmp_path: Path) -> None:
    def noisy(shift: float, seed: int, n: int = 12) -> Scores:
        own = np.random.default_rng(seed).normal(shift, 1.0, n)
        return Scores.of([f"item-{i}" for i in range(n)], nll=100 + own, tokens=np.full(n, 10.0))

    a, b = (run(tmp_path / n, {"test": noisy(s, i)}, task=None) for i, (n, s) in enumerate((("a", 0.0), ("b", 0.2))))
    flags: dict[str, Any] = {"metric": "nll/tokens", "better": "lower"}
    one = go(a, b, **flags).values["comparisons"]["nll/tokens"]
    assert one["better"] is None and one["items_needed"] > 12
    assert f"about {one['items_needed']:,} items would show this difference" in one["verdict"]
    finer = go(a, b, margin=1e-3, **flags).values["comparisons"]["nll/tokens"]
    assert finer["items_needed"] > one["items_needed"] and "a difference of 0.001" in finer["verdict"]
    shown = go(*(run(tmp_path / n, {"test": scores(s)}) for n, s in (("c", 0.0), ("d", 1.0))))
    assert shown.values["comparisons"][NLL.name]["items_needed"] is None
    assert "would show" not in shown.values["comparisons"][NLL.name]["verdict"]
