"""The Pareto front with its uncertainty: the probability that each arm is on it, by a paired bootstrap."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.measure.resample import item_replicates
from limbeck.measure.scores import Scores, align
from limbeck.measure.statistic import Better, Statistic
from limbeck.measure.stats import compare

__all__ = ["Axis", "Kept", "Point", "front_probability", "kept", "on_front", "replicates"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Answer = Literal["kept", "lost", "cannot be told"]

_CELLS = 8_000_000  # of one chunk of pairwise comparisons


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the front.

    Attributes:
        name: as the arms name their values.
        better: which direction is better.
        statistic: computes the figure from per-item scores; None where the arms carry measured values instead.
    """

    name: str
    better: Better
    statistic: Statistic | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One arm on all axes.

    Attributes:
        name: of the arm.
        scores: axis -> per-item scores, one evaluation for each seed.
        values: axis -> measured values such as bytes or milliseconds, one for each seed or repeat.
    """

    name: str
    scores: Mapping[str, Sequence[Scores]] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether an arm kept a figure of its origin up to a share of it.

    Attributes:
        answer: ``kept`` (the loss is below the margin), ``lost`` (it is above), or ``cannot be told``.
        loss: share of the origin's figure that was lost; negative: a gain.
        low: lower end of the 90 % interval of the loss (two one-sided tests at 5 %, Schuirmann 1987).
        high: upper end.
        margin: share that may be lost.
    """

    answer: Answer
    loss: float
    low: float
    high: float
    margin: float


def on_front(values: Floats, better: Sequence[Better]) -> Bools:
    """Mark the points that no other dominates.

    A point dominates another if it is no worse on every axis and better on one; equal points are on the front together.

    Args:
        values: (..., A, K) figures of A points on K axes.
        better: direction of each axis.

    Returns:
        (..., A) whether the point is on the front.
    """
    cost = values * np.array([1.0 if b == "lower" else -1.0 for b in better])
    arms = cost.shape[-2]
    out = np.ones(cost.shape[:-1], dtype=np.bool_)
    for b in range(arms):
        other = cost[..., b : b + 1, :]
        out &= ~((other <= cost).all(axis=-1) & (other < cost).any(axis=-1))
    return out


def replicates(points: Sequence[Point], axes: Sequence[Axis], resamples: int = 2000, seed: int = 0) -> Floats:
    """Resample the figures of all arms on all axes together.

    Items are drawn once for all arms and axes that share them (paired bootstrap, Efron 1979). Where an arm has several
    seeds, one random direction over its seeds moves all of its axes, scaled so that each axis has the spread of
    Student's t with S - 1 degrees of freedom over S seeds.

    Args:
        points: the arms.
        axes: figures or measured values.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, A, K) figures.

    Raises:
        DataError: an arm lacks an axis.
    """
    random = np.random.default_rng(seed)
    out = np.empty((resamples, len(points), len(axes)))
    drawn = _items_drawn(points, axes, resamples, seed)
    for a, point in enumerate(points):
        seeds = max((len(_runs(point, axis)) for axis in axes), default=1)
        weights = random.standard_normal((resamples, seeds))
        tail = np.sqrt(max(seeds - 1, 1) / random.chisquare(max(seeds - 1, 1), size=resamples))
        for k in range(len(axes)):
            figures = drawn[a, k]
            count = figures.shape[1]
            middle = figures.mean(axis=1)
            if count > 1:
                moved = ((figures - middle[:, None]) * weights[:, :count]).sum(axis=1)
                middle = middle + tail * moved / math.sqrt(count * (count - 1))
            out[:, a, k] = middle
    return out


def front_probability(
    points: Sequence[Point], axes: Sequence[Axis], *, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Return for each arm the probability that it is on the Pareto front of all ``axes``.

    Args:
        points: the arms, each with a value on every axis.
        axes: two or more; of one axis the front is the best arm.
        resamples: of the bootstrap.
        seed: of its draws; equal seeds give equal answers.

    Raises:
        DataError: no axis, or an arm that lacks one.
    """
    if not axes:
        raise DataError("a front needs at least one axis")
    if not points:
        return {}
    figures = replicates(points, axes, resamples, seed)
    better = [axis.better for axis in axes]
    size = max(1, _CELLS // (len(points) * len(axes)))
    parts = [on_front(figures[at : at + size], better).sum(axis=0) for at in range(0, resamples, size)]
    share = np.sum(parts, axis=0) / resamples
    return {point.name: float(p) for point, p in zip(points, share, strict=True)}


def kept(
    arm: Sequence[Scores], origin: Sequence[Scores], statistic: Statistic, margin: float = 0.01, *, seed: int = 0
) -> Kept:
    """Decide whether ``arm`` kept the figure of ``origin`` within ``margin`` of it.

    Args:
        arm: scores of each seed.
        origin: scores of each seed of the model that it was made from.
        statistic: the figure.
        margin: share of the origin's figure that may be lost.
        seed: of the resampling.

    Raises:
        DataError: the origin's figure is 0, so that no share of it exists; or the items differ.
    """
    found = compare(list(origin), list(arm), statistic, level=0.90, seed=seed)
    if found.a == 0:
        raise DataError(f"{statistic.name} of the origin is 0: a share of it cannot be lost")
    sign = 1.0 if statistic.better == "lower" else -1.0
    ends = sorted((sign * found.low / abs(found.a), sign * found.high / abs(found.a)))
    answer: Answer = "kept" if ends[1] < margin else "lost" if ends[0] > margin else "cannot be told"
    return Kept(answer, sign * found.difference / abs(found.a), ends[0], ends[1], margin)


def _runs(point: Point, axis: Axis) -> Sequence[object]:
    """One entry for each seed of ``point`` on ``axis``."""
    runs: Sequence[object] = (point.values if axis.statistic is None else point.scores).get(axis.name) or ()
    if not runs:
        raise DataError(f"arm '{point.name}' has no value on axis '{axis.name}': measure it, or leave the axis out")
    return runs


def _items_drawn(
    points: Sequence[Point], axes: Sequence[Axis], resamples: int, seed: int
) -> dict[tuple[int, int], Floats]:
    """(arm, axis) -> (R, S) figures of its S seeds; arms and axes of the same items share the items drawn."""
    out: dict[tuple[int, int], Floats] = {}
    for k, axis in enumerate(axes):
        groups: dict[frozenset[str], list[int]] = {}
        for a, point in enumerate(points):
            _runs(point, axis)
            if axis.statistic is None:
                values = np.asarray(point.values[axis.name], dtype=np.float64)
                out[a, k] = np.broadcast_to(values, (resamples, len(values)))
            else:
                groups.setdefault(frozenset(point.scores[axis.name][0].ids), []).append(a)
        for members in groups.values():
            statistic = axis.statistic
            assert statistic is not None
            first = points[members[0]].scores[axis.name][0]
            order = first.select(sorted(first.ids))
            runs = [[align(order, run)[1] for run in points[a].scores[axis.name]] for a in members]
            tables = [statistic.table(run) for of_arm in runs for run in of_arm]
            # seeded by the items: each axis of the same items draws the same ones
            shared = np.random.default_rng([seed, zlib.crc32("\n".join(order.ids).encode())])
            figures = item_replicates(tables, statistic.of_sums, resamples, shared)
            at = 0
            for a, of_arm in zip(members, runs, strict=True):
                out[a, k] = figures[:, at : at + len(of_arm)]
                at += len(of_arm)
    return out
