from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.study.effects import Effect, effects, levels

GRID = [{"bits": b, "rank": r} for b, r in product((4, 8, 16), (1, 8))]
BITS = {4: -3.0, 8: 1.0, 16: 2.0}
RANK = {1: -0.5, 8: 0.5}


def found(arms: list[dict[str, Any]], figures: list[float]) -> dict[tuple[str, ...], Effect]:
    resampled = np.tile(figures, (50, 1))
    all_ = effects(arms, np.array(figures), resampled)
    return {e.knobs + e.levels if len(e.knobs) == 1 else ("x", *e.levels): e for e in all_}


def test_a_full_grid_gives_its_effects_back() -> None:
    """Known truth: figure = 10 + bits + rank + one interaction that sums to zero over rows and columns."""
    beyond = {(4, 1): 0.4, (4, 8): -0.4, (8, 1): -0.3, (8, 8): 0.3, (16, 1): -0.1, (16, 8): 0.1}
    figures = [10 + BITS[a["bits"]] + RANK[a["rank"]] + beyond[a["bits"], a["rank"]] for a in GRID]
    by = found(GRID, figures)
    for bits, value in BITS.items():
        assert by["bits", str(bits)].value == pytest.approx(value)
    assert by["rank", "1"].value == pytest.approx(-0.5)
    for (bits, rank), value in beyond.items():
        assert by["x", str(bits), str(rank)].value == pytest.approx(value)
    assert by["bits", "4"].low == pytest.approx(-3.0) and by["bits", "4"].high == pytest.approx(-3.0)


def test_main_effects_of_an_additive_table_survive_a_missing_cell() -> None:
    arms = [a for a in GRID if a != {"bits": 16, "rank": 8}]
    by = found(arms, [BITS[a["bits"]] + RANK[a["rank"]] for a in arms])
    assert by["x", "16", "8"].value is None, "a cell that nobody ran is not made up"
    assert by["x", "4", "1"].value is None or abs(by["x", "4", "1"].value) < 1e-9


def test_confounded_knobs_have_no_value() -> None:
    arms = [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 64}]
    assert {e.value for e in effects(arms, np.array([1.0, 2.0]), np.ones((10, 2)))} == {None}


def test_intervals_cover_the_truth() -> None:
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        truth = np.array([BITS[a["bits"]] + RANK[a["rank"]] for a in GRID])
        observed = truth + rng.normal(0, 0.3, size=6)
        drawn = observed + rng.normal(0, 0.3, size=(800, 6))
        one = next(e for e in effects(GRID, observed, drawn) if e.levels == ("4",))
        assert one.low is not None and one.high is not None
        held.append(one.low <= -3.0 <= one.high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_knobs_that_do_not_vary_or_are_not_shared_are_left_out() -> None:
    assert levels([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "c": 1}]) == {"b": ["2", "3"]}
    assert levels([]) == {} and effects([{"a": 1}], np.ones(1), np.ones((3, 1))) == []
    with pytest.raises(DataError, match="2 arms have 1 figures"):
        effects(GRID[:2], np.ones(1), np.ones((3, 1)))
