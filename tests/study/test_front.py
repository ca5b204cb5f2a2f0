from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Better, mean
from limbeck.study.front import Axis, Point, front_probability, kept, on_front, replicates

RIGHT = mean("correct", name="accuracy")
ACCURACY = Axis("accuracy", "higher", RIGHT)
BYTES = Axis("bytes", "lower")


def scores(values: list[float] | np.ndarray, **more: np.ndarray) -> Scores:
    return Scores.of([f"i{n}" for n in range(len(values))], correct=values, **more)


def brute(points: list[list[float]], better: list[Better]) -> list[bool]:
    """Every pair and axis, by the definition of dominance."""

    def dominates(p: list[float], q: list[float]) -> bool:
        gains = [(a - b) if d == "higher" else (b - a) for a, b, d in zip(p, q, better, strict=True)]
        return all(g >= 0 for g in gains) and any(g > 0 for g in gains)

    return [not any(dominates(p, q) for p in points) for q in points]


small = st.integers(-2, 2).map(float)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(small, min_size=3, max_size=3), min_size=1, max_size=8), st.data())
def test_on_front_is_what_comparing_every_pair_leaves(points: list[list[float]], data: st.DataObject) -> None:
    better = data.draw(st.lists(st.sampled_from(["lower", "higher"]), min_size=3, max_size=3))
    assert on_front(np.array(points), better).tolist() == brute(points, better)


def test_probability_equals_the_enumeration_of_every_resample() -> None:
    right = {"a": [1, 0, 1, 1], "b": [1, 1, 0, 1], "c": [0, 1, 1, 0]}
    size = {"a": 3.0, "b": 2.0, "c": 1.0}
    points = [Point(n, {"accuracy": [scores(v)]}, {"bytes": [size[n]]}) for n, v in right.items()]
    found = front_probability(points, [ACCURACY, BYTES], resamples=40_000, seed=1)
    hits, draws = np.zeros(3), list(product(range(4), repeat=4))
    for draw in draws:  # all 256 draws of 4 items with replacement, the same for each arm
        at = [[sum(right[n][i] for i in draw) / 4, size[n]] for n in right]
        hits += brute(at, ["higher", "lower"])
    expected = hits / len(draws)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1
    assert [found[n] for n in right] == pytest.approx(expected.tolist(), abs=0.01)
    assert found == front_probability(points, [ACCURACY, BYTES], resamples=40_000, seed=1)


def test_items_are_paired_across_arms_and_axes() -> None:
    """An arm that is worse by one on every item is never on the front, however far the items lie apart."""
    hard = np.random.default_rng(0).normal(size=50)
    a = Point("a", {"x": [scores(hard)], "y": [scores(hard)]})
    b = Point("b", {"x": [scores(hard - 0.01)], "y": [scores(hard[::-1] - 0.01)]})
    axes = [Axis("x", "higher", RIGHT), Axis("y", "higher", RIGHT)]
    drawn = replicates([a, b], axes, 200)
    assert np.allclose(drawn[:, 0, 0] - drawn[:, 1, 0], 0.01)
    assert np.allclose(drawn[:, 0, 0], drawn[:, 0, 1]), "the same items are drawn on both axes"
    assert front_probability([a, b], axes[:1]) == {"a": 1.0, "b": 0.0}


def test_items_in_another_order_are_matched_by_id() -> None:
    rng = np.random.default_rng(3)
    one = scores(rng.normal(size=30))
    turned = one.select(one.ids[::-1])
    axes = [Axis("accuracy", "higher", RIGHT)]
    drawn = replicates([Point("a", {"accuracy": [one]}), Point("b", {"accuracy": [turned]})], axes, 100)
    assert np.allclose(drawn[:, 0], drawn[:, 1])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_several_seeds_spread_as_student_t(seeds: int) -> None:
    """Without any spread over items the interval is the classic t interval over seeds."""
    from scipy.stats import t

    figures = np.random.default_rng(seeds).normal(size=seeds)
    runs = [scores(np.full(5, f)) for f in figures]
    point = Point("a", {"accuracy": runs}, {"bytes": list(figures)})
    drawn = replicates([point], [ACCURACY, BYTES], 60_000)[:, 0]
    half = t.ppf(0.95, seeds - 1) * figures.std(ddof=1) / np.sqrt(seeds)
    for axis in range(2):
        low, high = np.quantile(drawn[:, axis], [0.05, 0.95])
        assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert np.allclose(drawn[:, 0], drawn[:, 1]), "one direction over seeds moves both axes"


def test_probability_is_calibrated_against_the_true_front() -> None:
    """Over many simulated studies the probabilities have a small Brier score against the front of the true figures."""
    rng, errors = np.random.default_rng(0), []
    sizes = [1.0, 2.0, 3.0, 4.0]
    for _ in range(60):
        truth = rng.uniform(0.4, 0.9, size=4)
        points = [
            Point(f"{n}", {"accuracy": [scores((rng.random(150) < p).astype(float))]}, {"bytes": [sizes[n]]})
            for n, p in enumerate(truth)
        ]
        found = front_probability(points, [ACCURACY, BYTES], resamples=200)
        true = brute([[p, s] for p, s in zip(truth, sizes, strict=True)], ["higher", "lower"])
        errors += [(found[f"{n}"] - on) ** 2 for n, on in enumerate(true)]
    assert np.mean(errors) <= 0.10


def test_kept_has_three_answers() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(10, 1, size=400)
    origin = [scores(base)]
    same = kept([scores(base + rng.normal(0, 0.1, size=400))], origin, RIGHT, 0.01)
    worse = kept([scores(base - 0.5)], origin, RIGHT, 0.01)
    noisy = kept([scores(base + rng.normal(0, 5, size=400))], origin, RIGHT, 0.01)
    assert (same.answer, worse.answer, noisy.answer) == ("kept", "lost", "cannot be told")
    assert worse.loss == pytest.approx(0.05, abs=0.001) and worse.low <= worse.loss <= worse.high
    cost = mean("correct", name="loss", better="lower")
    assert kept([scores(base + 0.5)], origin, cost, 0.01).answer == "lost", "for a loss, more is worse"
    with pytest.raises(DataError, match="of the origin is 0"):
        kept(origin, [scores(np.zeros(400))], RIGHT)


def test_a_missing_axis_and_no_axis_are_errors() -> None:
    with pytest.raises(DataError, match="arm 'a' has no value on axis 'bytes'"):
        front_probability([Point("a")], [BYTES])
    with pytest.raises(DataError, match="at least one axis"):
        front_probability([Point("a")], [])
    assert front_probability([], [BYTES]) == {}
