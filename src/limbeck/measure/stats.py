"""How sure a figure is: intervals, comparisons, equivalence, and the words for the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from limbeck.errors import DataError
from limbeck.measure import resample
from limbeck.measure.scores import Scores, align
from limbeck.measure.statistic import Statistic

__all__ = ["Comparison", "Equivalence", "Interval", "compare", "holm", "interval", "items_needed", "verdict"]

Floats = NDArray[np.float64]
Method = Literal["percentile", "bca"]
Pairing = Literal["items", "shared", "none"]
Seeds = Literal["independent", "paired"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval.

    Attributes:
        value: the figure of the whole set, its mean over seeds.
        low: lower end; minus infinity where one item leaves everything open.
        high: upper end.
        level: share of such intervals that hold the true figure.
        items: how many items were resampled.
        seeds: how many runs were averaged; one says nothing of others.
        method: ``percentile`` or ``bca``, over items; with several seeds Student's t over seeds on top.
        unit: of the figure.
    """

    value: float
    low: float
    high: float
    level: float
    items: int
    seeds: int = 1
    method: Method = "percentile"
    unit: str = ""

    def describe(self) -> str:
        """Say it in words: ``3.24 nats [3.18, 3.30], 95 %, 100 items``."""
        unit = f" {self.unit}" if self.unit else ""
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{_round(self.value, self)}{unit} {_span(self)}, {_percent(self.level)}, {_items(self.items)}{seeds}"


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987), read off the interval of level ``1 - 2 alpha``.

    Attributes:
        equivalent: that interval lies within the margin on both sides.
        margin: largest difference that does not matter, in the figure's unit.
        low: of the interval.
        high: of the interval.
        alpha: error rate of each test.
    """

    equivalent: bool
    margin: float
    low: float
    high: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two systems, ``b - a``, with what it takes to judge it.

    Attributes:
        statistic: the figure compared.
        a: figure of the first system.
        b: figure of the second.
        low: lower end of the interval of ``b - a``.
        high: upper end.
        level: of the interval.
        p: two-sided, of a permutation test over items; with several seeds the larger of that and of the share of
            replicates on the other side of 0, so that a difference must hold over items and over seeds.
        items: how many items were compared; of unpaired sets the smaller number.
        seeds: runs of the first and of the second system.
        pairing: ``items`` (all shared), ``shared`` (those that are) or ``none``.
        item_error: standard error that the choice of items alone causes.
        replicates: (R,) resampled differences.
    """

    statistic: Statistic
    a: float
    b: float
    low: float
    high: float
    level: float
    p: float
    items: int
    seeds: tuple[int, int]
    pairing: Pairing
    item_error: float
    replicates: Floats = field(repr=False)

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a

    @property
    def shown(self) -> bool:
        """The interval leaves 0 out and the permutation test agrees: with few items either alone is too easily sure."""
        return (self.low > 0 or self.high < 0) and self.p <= 1 - self.level + 1e-12

    @property
    def better(self) -> Literal["a", "b"] | None:
        """Which system is better, or None where no difference is shown."""
        if not self.shown:
            return None
        return "b" if (self.difference > 0) == (self.statistic.better == "higher") else "a"

    def equivalence(self, margin: float, alpha: float = 0.05) -> Equivalence:
        """Are the two equal for all practical purposes, that is within ``margin``?"""
        low, high = -math.inf, math.inf
        if self.items > 1:
            low, high = resample.percentile_interval(self.replicates, 1 - 2 * alpha)
        return Equivalence(-margin < low and high < margin, margin, low, high, alpha)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "statistic": self.statistic.name,
            "unit": self.statistic.unit,
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "p": self.p,
            "items": self.items,
            "seeds": list(self.seeds),
            "pairing": self.pairing,
            "better": self.better,
        }


def interval(
    scores: Scores | Sequence[Scores],
    statistic: Statistic,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Method = "percentile",
) -> Interval:
    """Bootstrap a figure over items, and over seeds where there are several runs.

    Args:
        scores: one evaluation, or one of the same items for each seed.
        statistic: the figure.
        level: of the interval.
        resamples: how many sets are drawn.
        seed: of the draws; equal seeds give equal intervals.
        method: ``bca`` corrects bias and skew of small sets; for one run only.

    Raises:
        DataError: the runs are of different items, or lack a score.
        ValueError: ``bca`` over several runs.
    """
    runs = _runs(scores)
    if method == "bca" and len(runs) > 1:
        raise ValueError("a bca interval is of one run: over several seeds use percentile")
    value = float(np.mean([statistic.value(run) for run in runs]))
    items, low, high = len(runs[0]), -math.inf, math.inf
    if items > 1:
        random = np.random.default_rng(seed)
        tables = [statistic.table(run) for run in runs]
        replicates = resample.with_seeds(resample.item_replicates(tables, statistic.of_sums, resamples, random), random)
        if method == "bca":
            without_one = resample.jackknife(tables, statistic.of_sums)
            low, high = resample.bca_interval(replicates, value, without_one, level)
        else:
            low, high = resample.percentile_interval(replicates, level)
        least, most = statistic.bounds
        low, high = max(low, least), min(high, most)
    return Interval(value, low, high, level, items, len(runs), method, statistic.unit)


def compare(
    a: Scores | Sequence[Scores],
    b: Scores | Sequence[Scores],
    statistic: Statistic,
    *,
    pairing: Pairing = "items",
    seeds: Seeds = "independent",
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems, item by item where they were measured on the same items.

    Args:
        a: the first system: one evaluation, or one of the same items for each seed.
        b: the second system.
        statistic: the figure.
        pairing: ``items`` refuses sets that differ; ``shared`` compares what both have; ``none`` compares two sets of
            different items, which is far less sharp.
        seeds: ``paired`` where run i of both started alike (same initialisation and data order).
        level: of the interval.
        resamples: of bootstrap and permutation test each.
        seed: of all draws.

    Raises:
        DataError: the items differ though they were to be paired, a score is missing, or paired seeds differ in number.
    """
    runs_a, runs_b = _runs(a), _runs(b)
    if seeds == "paired" and len(runs_a) != len(runs_b):
        raise DataError(f"{len(runs_a)} and {len(runs_b)} seeds cannot be paired: give as many runs of both")
    if pairing != "none":
        shared, _ = align(runs_a[0], runs_b[0], intersect=pairing == "shared")
        runs_a, runs_b = ([run.select(shared.ids) for run in runs] for runs in (runs_a, runs_b))
    tables_a, tables_b = ([statistic.table(run) for run in runs] for runs in (runs_a, runs_b))
    figures_a, figures_b = ([statistic.value(run) for run in runs] for runs in (runs_a, runs_b))
    items = min(len(runs_a[0]), len(runs_b[0]))
    low, high, p, error, replicates = -math.inf, math.inf, 1.0, math.inf, np.zeros(0)
    if items > 1:
        random = np.random.default_rng(seed)
        drawn_a, drawn_b = _draw(tables_a, tables_b, statistic, pairing, resamples, random)
        error = float((drawn_b.mean(axis=1) - drawn_a.mean(axis=1)).std(ddof=1))
        if seeds == "paired":
            replicates = resample.with_seeds(drawn_b - drawn_a, random)
        else:
            replicates = resample.with_seeds(drawn_b, random) - resample.with_seeds(drawn_a, random)
        low, high = resample.percentile_interval(replicates, level)
        test = resample.shuffle_labels if pairing == "none" else resample.flip_labels
        pooled_a, pooled_b = np.mean(tables_a, axis=0), np.mean(tables_b, axis=0)
        p = test(pooled_a, pooled_b, statistic.of_sums, resamples, random)
        if max(len(runs_a), len(runs_b)) > 1:
            sides = (int((replicates <= 0).sum()), int((replicates >= 0).sum()))
            p = max(p, min(1.0, 2 * (min(sides) + 1) / (resamples + 1)))
    return Comparison(
        statistic=statistic,
        a=float(np.mean(figures_a)),
        b=float(np.mean(figures_b)),
        low=low,
        high=high,
        level=level,
        p=p,
        items=items,
        seeds=(len(runs_a), len(runs_b)),
        pairing=pairing,
        item_error=error,
        replicates=replicates,
    )


def verdict(
    comparison: Comparison, names: tuple[str, str] = ("A", "B"), margin: float | None = None, alpha: float = 0.05
) -> str:
    """Say in words what the comparison shows, and no more.

    Args:
        comparison: of two systems.
        names: of the first and of the second system.
        margin: a difference that does not matter; if given, equivalence is tested where no difference is shown.
        alpha: error rate of that test.
    """
    c, unit = comparison, f" {comparison.statistic.unit}" if comparison.statistic.unit else ""
    facts = f"{_percent(c.level)}, {_items(c.items)}{_seeds(c.seeds)}"
    facts += {"items": "", "shared": " that both have", "none": ", unpaired"}[c.pairing]
    if c.items < 2:
        return f"no difference can be shown at 1 item: {names[1]} - {names[0]} is {_round(c.difference, c)}{unit}"
    if c.better is not None:
        winner = names[0] if c.better == "a" else names[1]
        ends = sorted((abs(c.low), abs(c.high)))
        span = f"[{_round(ends[0], c)}, {_round(ends[1], c)}]"
        return f"{winner} is better by {_round(abs(c.difference), c)}{unit} {span}, {facts}"
    told = f"{names[1]} - {names[0]} is {_round(c.difference, c)}{unit} {_span(c)}, {facts}, p = {c.p:.2g}"
    if margin is not None and (test := c.equivalence(margin, alpha)).equivalent:
        span = f"[{_round(test.low, c)}, {_round(test.high, c)}], {_percent(1 - 2 * alpha)}"
        return f"equivalent within {margin:g}{unit} at {_items(c.items)}: {span}; {told}"
    return f"no difference shown at {_items(c.items)}: {told}"


def items_needed(comparison: Comparison, difference: float | None = None, power: float = 0.8) -> int:
    """How many items of this kind would show a ``difference``, by the normal approximation.

    The spread of items is taken from the comparison at hand. More items do not help against the spread of seeds.

    Args:
        comparison: with at least two items.
        difference: to be seen; None: the one observed.
        power: the chance to see it if it is there.

    Raises:
        DataError: the difference is 0, or one item leaves the spread unknown.
    """
    wanted = comparison.difference if difference is None else difference
    if wanted == 0 or comparison.items < 2:
        raise DataError("how many items are needed can be told of a difference other than 0 and of two items at least")
    z = float(ndtri((1 + comparison.level) / 2) + ndtri(power))
    return max(2, math.ceil(comparison.items * (z * comparison.item_error / wanted) ** 2))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p of several comparisons so that one false alarm among all is as rare as stated (Holm 1979)."""
    out: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: p[n])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        out[name] = largest
    return {name: out[name] for name in p}


def _runs(scores: Scores | Sequence[Scores]) -> list[Scores]:
    runs = [scores] if isinstance(scores, Scores) else list(scores)
    if not runs:
        raise DataError("no evaluation was given to make an interval of")
    return [align(runs[0], run)[1] for run in runs]


def _draw(
    tables_a: list[Floats],
    tables_b: list[Floats],
    statistic: Statistic,
    pairing: Pairing,
    resamples: int,
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """(R, seeds) figures of both systems; paired items are drawn together."""
    if pairing == "none":
        return (
            resample.item_replicates(tables_a, statistic.of_sums, resamples, random),
            resample.item_replicates(tables_b, statistic.of_sums, resamples, random),
        )
    both = resample.item_replicates([*tables_a, *tables_b], statistic.of_sums, resamples, random)
    return both[:, : len(tables_a)], both[:, len(tables_a) :]


def _round(value: float, of: Interval | Comparison) -> str:
    """Digits that the interval's width leaves any meaning: two of the width's own."""
    width = of.high - of.low
    if not math.isfinite(width) or width <= 0:
        return f"{value:.4g}"
    digits = min(8, max(0, 1 - math.floor(math.log10(width))))
    return f"{value:.{digits}f}"


def _span(of: Interval | Comparison) -> str:
    return f"[{_round(of.low, of)}, {_round(of.high, of)}]"


def _percent(level: float) -> str:
    return f"{100 * level:.4g} %"


def _items(items: int) -> str:
    return f"{items} item{'' if items == 1 else 's'}"


def _seeds(seeds: tuple[int, int]) -> str:
    if seeds[0] == seeds[1]:
        return f", {seeds[0]} seed{'' if seeds[0] == 1 else 's'}"
    return f", {seeds[0]} and {seeds[1]} seeds"
