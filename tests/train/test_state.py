"""Means over a window, judgement of evaluations, and the way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from limbeck.train.settings import TrainSettings
from limbeck.train.state import State, Tally


def test_means_are_sums_over_counts() -> None:
    tally = Tally()
    tally.add({"nll": 6.0, "kl": 1.0}, {"nll": 2.0, "kl": 4.0}, {"nll": 0.5, "kl": 2.0})
    tally.add({"nll": 3.0, "kl": 0.0}, {"nll": 4.0, "kl": 0.0}, {"nll": 0.5, "kl": 2.0})
    assert tally.means() == {"train/loss": 0.5 * 1.5 + 2.0 * 0.25, "train/nll": 1.5, "train/kl": 0.25}
    empty = Tally()
    empty.add({"nll": 1.0, "kl": 0.0}, {"nll": 1.0, "kl": 0.0}, {"nll": 1.0, "kl": 1.0})
    assert empty.means() == {"train/loss": 1.0, "train/nll": 1.0}


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 2.0, 2.0, 2.5], (1, 2.0, 2)),
        ("max", [3.0, 2.0, 4.0, 4.0], (2, 4.0, 1)),
        ("min", [math.nan, 5.0, math.nan], (1, 5.0, 1)),
        ("max", [-math.inf, -5.0, math.inf], (1, -5.0, 1)),
        ("min", [math.inf, math.nan], (None, None, 2)),
    ],
)
def test_judgement(mode: Any, values: list[float], best: tuple[Any, ...]) -> None:
    state, settings = State(), TrainSettings(mode=mode)
    improved = []
    for state.step, value in enumerate(values):  # noqa: B020
        improved.append(state.judge(value, settings))
    assert (state.best_step, state.best_value, state.worse) == best
    assert [i for i, yes in enumerate(improved) if yes][-1:] == ([] if best[0] is None else [best[0]])


def test_it_comes_back_bit_for_bit() -> None:
    state = State(step=3, best_step=2, best_value=0.1 + 0.2, tally=Tally({"a": 1 / 3}, {"a": 7.0}, {"a": 1.0}))
    state.settings = TrainSettings(steps=3).model_dump(mode="json")
    assert State.from_json(json.dumps(state.to_json())) == state
    with pytest.raises(ValueError, match="step"):
        State.from_json('{"step": "x"}')
