"""I27: accuracy stands beside the majority rate and the histogram, and a constant answer is flagged as a collapse."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from limbeck.data.toy.table import toy_rows
from limbeck.formats.load import save_bundle
from limbeck.jobs.recipe import Display
from limbeck.measure.classes import class_columns, class_counts, class_statistics, collapse
from limbeck.measure.scores import Scores
from limbeck.tasks.table import TASKS
from limbeck.verbs.evaluate import Evaluate
from limbeck.verbs.finetune import Finetune
from tests.reference.task_models import small, tokenizer


def test_the_published_case_a_constant_no_at_063_rings() -> None:
    """System B's "zero-shot accuracy kept at 0.63" is a model that answers "no" to 63 % true no."""
    truth = [0] * 63 + [1] * 37
    scores = Scores.of([str(i) for i in range(100)], **class_columns(truth, [0] * 100, ("no", "yes")))
    figures = {s.name: s.value(scores) for s in class_statistics(scores.columns)}
    assert figures["accuracy"] == figures["majority rate"] == 0.63
    assert figures["F1"] == 0
    counts = class_counts(scores)
    sentence = collapse(counts.true, counts.predicted)
    assert sentence == "collapsed: 100 of 100 predictions are 'no', which is true of 63.0%"
    assert sentence in counts.sentences()


def test_a_model_that_tells_classes_apart_does_not_ring() -> None:
    truth = [0, 1] * 20
    guess = [0, 1] * 15 + [1, 0] * 5
    counts = class_counts(Scores.of(map(str, range(40)), **class_columns(truth, guess, ("no", "yes"))))
    assert counts.sentences() == ("predicted no: 20 (true 20), yes: 20 (true 20); entropy 0.69 nats (true 0.69)",)


@pytest.mark.parametrize("name", [n for n in TASKS if n in ("sentiment", "paraphrase", "sst2")])
def test_every_task_with_an_accuracy_has_the_majority_rate_beside_it(name: str) -> None:
    columns = class_columns([0, 1], [0, 0], ("0", "1"))
    names = [s.name for s in TASKS[name]().statistics([*columns, "nll", "other_correct"])]
    assert {"accuracy", "majority rate", "macro F1"} <= set(names)


def test_fine_tuning_and_evaluating_show_both(tmp_path: Path) -> None:
    """End to end: a head is put on, trained, saved, loaded; the report for people holds rate and histogram."""
    save_bundle(small(hidden_size=32), tokenizer(), tmp_path / "base")
    finetune = Finetune.model_validate(
        {
            "model": str(tmp_path / "base"),
            "data": "toy:sentiment",
            "limit": 120,
            "task": {"kind": "sentiment", "labels": ["0", "1"]},
            "train": {"steps": 3, "learning_rate": 1e-3},
            "out": str(tmp_path / "run"),
        }
    )
    trained = finetune.run(Display.silent())
    assert {"accuracy", "majority rate"} <= set(trained.values["metrics"])
    evaluate = Evaluate.model_validate(
        {
            "model": str(tmp_path / "run"),
            "data": "toy:sentiment",
            "limit": 60,
            "task": {"kind": "sentiment"},
        }
    )
    report = evaluate.run(Display.silent())
    metrics, notes = report.values["metrics"], report.values["notes"]
    rows = toy_rows("sentiment").rows[:60]
    ones = sum(r.fields["label"] for r in rows)
    assert metrics["majority rate"]["value"] == pytest.approx(max(ones, 60 - ones) / 60)
    assert sum(notes["classes"]["predicted"].values()) == 60
    assert torch.tensor(list(notes["classes"]["true"].values())).tolist() == [60 - ones, ones]
    shown = Console(file=io.StringIO(), width=200)
    report.show(shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "majority rate" in text and f"0: {notes['classes']['predicted']['0']} (true {60 - ones})" in text
