from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.study.pareto import front

Better = Literal["lower", "higher"]


def brute_force(points: list[tuple[float, float]], better: Better) -> set[int]:
    """Every pair compared, by the definition."""

    def dominates(p: tuple[float, float], q: tuple[float, float]) -> bool:
        no_worse = p[1] <= q[1] if better == "lower" else p[1] >= q[1]
        return p[0] <= q[0] and no_worse and p != q

    return {i for i, q in enumerate(points) if not any(dominates(p, q) for p in points)}


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), max_size=12), st.sampled_from(["lower", "higher"]))
def test_front_is_what_comparing_every_pair_leaves(points: list[tuple[float, float]], better: Better) -> None:
    found = front(points, better)
    assert set(found) == brute_force(points, better)
    assert len(found) == len(set(found))
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@pytest.mark.parametrize(("better", "expected"), [("lower", [2, 0]), ("higher", [2, 1])])
def test_direction_decides(better: Better, expected: list[int]) -> None:
    assert front([(2.0, 0.1), (2.0, 0.9), (1.0, 0.5)], better) == expected


def test_equal_points_stand_together_and_nothing_has_no_front() -> None:
    assert front([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)], "lower") == [0, 1]
    assert front([], "lower") == []
