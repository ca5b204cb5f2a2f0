"""The task of preferences: accuracies against sums written out, ties, templates, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.data.chat import ChatTemplate
from limbeck.data.pairs import encode_pairs
from limbeck.tasks.preferences import Preferences
from limbeck.tasks.task import Measuring, Result
from tests.reference.pairs import slow_log_prob
from tests.reference.task_models import small, tokenizer

TASK = Preferences()
ROWS = TASK.read("toy:preferences", columns={}, limit=24, separator="")


def measured(batch_size: int = 4, **options: Any) -> Result:
    task = Preferences(**options)
    return task.evaluate(small(context=400), tokenizer(), ROWS, Measuring(batch_size=batch_size), task.decoding())


def test_scores_are_those_of_each_answer_alone() -> None:
    model, scores = small(context=400), measured().scores
    pairs, _ = encode_pairs(ROWS, ChatTemplate.named("turns", tokenizer()), 400)
    assert scores.ids == tuple(row.id for row in ROWS)
    for i, pair in enumerate(pairs):
        chosen, rejected = (slow_log_prob(model, side).item() for side in (pair, pair.rejected))
        n, m = pair.predictions, pair.rejected.predictions
        assert scores["nll"][i] == pytest.approx(-chosen, rel=1e-5)
        assert scores["rejected_nll"][i] == pytest.approx(-rejected, rel=1e-5)
        assert scores["correct"][i] == float(chosen / n > rejected / m)
        assert scores["correct_by_sum"][i] == float(chosen > rejected)
        assert scores["shorter"][i] == (1.0 if n < m else 0.5 if n == m else 0.0)
        assert scores["margin"][i] == pytest.approx(chosen / n - rejected / m, rel=1e-4, abs=1e-6)


def test_figures_and_predictions_follow_the_scores() -> None:
    found = measured()
    figures = {s.name: s.value(found.scores) for s in TASK.statistics(found.scores.columns)}
    assert figures["accuracy"] == pytest.approx(found.scores["correct"].mean())
    assert figures["accuracy by sum"] == pytest.approx(found.scores["correct_by_sum"].mean())
    assert figures["nats per token"] == pytest.approx(found.scores["nll"].sum() / found.scores["tokens"].sum())
    told = [found.predictions[i] == "chosen" for i in found.scores.ids]
    assert told == [c == 1 for c in found.scores["correct"]]
    assert found.protocol["template"] and len(found.samples) == 2


def test_no_score_depends_on_the_batch_size() -> None:
    one, many = measured(1).scores, measured(24).scores
    for name, column in one.columns.items():
        assert many[name] == pytest.approx(column, rel=1e-5, abs=1e-6)


def test_the_template_is_part_of_the_figure_and_of_the_saved_tokenizer() -> None:
    bare = measured(template="bare")
    assert bare.protocol["template"] != measured().protocol["template"]
    assert bare.scores["nll"] != pytest.approx(measured().scores["nll"])
    assert Preferences(template="bare").equip(tokenizer()).chat_template == bare.protocol["template"]
    begun = Preferences(begin=True).equip(tokenizer()).chat_template
    assert begun is not None and begun.startswith("{{ bos_token }}")
