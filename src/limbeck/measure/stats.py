"""How sure a figure is: intervals, comparisons, equivalence, and the words for the verdict."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from limbeck.errors import DataError
from limbeck.measure import resample
from limbeck.measure.scores import Scores, align
from limbeck.measure.statistic import Statistic
from limbeck.measure.uncertainty import Difference, ExactShare, Seeds, item_error, of_difference, of_figure, p_of

__all__ = [
    "Comparison",
    "Equivalence",
    "Interval",
    "Seeds",
    "adjust",
    "compare",
    "holm",
    "interval",
    "items_needed",
    "verdict",
]

Floats = NDArray[np.float64]
Method = Literal["exact", "t"]
Pairing = Literal["items", "shared", "none"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: the figure of the whole set, its mean over seeds.
        low: lower end; minus infinity where the items leave it open.
        high: upper end.
        level: share of such intervals that hold the true figure.
        items: how many items were measured.
        seeds: how many runs were averaged; one says nothing of others.
        method: ``exact`` of a share of items, otherwise ``t`` with the skewness of the items removed.
        unit: of the figure.
        caution: why the items may not carry the level, in words; empty where they do.
    """

    value: float
    low: float
    high: float
    level: float
    items: int
    seeds: int = 1
    method: Method = "t"
    unit: str = ""
    caution: str = ""

    def describe(self) -> str:
        """Say it in words: ``3.24 nats [3.18, 3.30], 95 %, 100 items``."""
        unit = f" {self.unit}" if self.unit else ""
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        caution = f" ({self.caution})" if self.caution else ""
        facts = f"{_percent(self.level)}, {_items(self.items)}{seeds}{caution}"
        return f"{_round(self.value, self)}{unit} {_span(self)}, {facts}"


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
        p: two-sided: the larger of a permutation test over items and of the error rate at which the interval leaves 0
            out, so that no interval contradicts it.
        items: how many items were compared; of unpaired sets the smaller number.
        seeds: runs of the first and of the second system.
        pairing: ``items`` (all shared), ``shared`` (those that are) or ``none``.
        item_error: standard error that the choice of items alone causes.
        uncertainty: what gives the interval at any level.
        family: how many comparisons are judged together; ``adjust`` sets it.
        p_adjusted: ``p`` after Holm over the family; the verdict comes from it.
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
    uncertainty: Difference = field(repr=False)
    family: int = 1
    p_adjusted: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.p_adjusted):
            object.__setattr__(self, "p_adjusted", self.p)

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the adjusted p is small enough; the interval then leaves 0 out."""
        return self.p_adjusted <= 1 - self.level + 1e-12

    @property
    def better(self) -> Literal["a", "b"] | None:
        """Which system is better, or None where no difference is shown."""
        if not self.shown:
            return None
        return "b" if (self.difference > 0) == (self.statistic.better == "higher") else "a"

    def equivalence(self, margin: float, alpha: float = 0.05) -> Equivalence:
        """Test whether the two are equal for all practical purposes, that is within ``margin``."""
        low, high = _within(self.uncertainty.ends(1 - 2 * alpha), self.statistic)
        return Equivalence(-margin < low and high < margin, margin, low, high, alpha)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
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
            "p_holm": self.p_adjusted,
            "family": self.family,
            "items": self.items,
            "seeds": list(self.seeds),
            "pairing": self.pairing,
            "better": self.better,
        }


def interval(scores: Scores | Sequence[Scores], statistic: Statistic, *, level: float = 0.95) -> Interval:
    """Return a figure with its interval over items, and over seeds where there are several runs.

    A share of items has the exact interval of Clopper and Pearson; other figures have Student's t with the skewness of
    the items removed (``measure.uncertainty``). No interval has width zero.

    Args:
        scores: one evaluation, or one of the same items for each seed.
        statistic: the figure.
        level: of the interval.

    Raises:
        DataError: the runs are of different items, or lack a score.
    """
    runs = _runs(scores)
    value = float(np.mean([statistic.value(run) for run in runs]))
    found = of_figure([statistic.table(run) for run in runs], statistic)
    least, most = statistic.bounds
    low, high = found.ends(level)
    return Interval(
        value,
        max(low, least),
        min(high, most),
        level,
        len(runs[0]),
        len(runs),
        "exact" if isinstance(found, ExactShare) else "t",
        statistic.unit,
        found.caution(level),
    )


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

    With one seed a side, only the choice of items is uncertain: nothing is said of other seeds. With several, the
    variance is that of a mixed model with random items and random seeds (``measure.uncertainty.of_difference``).

    Args:
        a: the first system: one evaluation, or one of the same items for each seed.
        b: the second system.
        statistic: the figure.
        pairing: ``items`` refuses sets that differ; ``shared`` compares what both have; ``none`` compares two sets of
            different items, which is far less sharp.
        seeds: ``paired`` where run i of both started alike (same initialisation and data order).
        level: of the interval.
        resamples: of the permutation test.
        seed: of its draws.

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
    uncertainty = of_difference(tables_a, tables_b, statistic, paired_items=pairing != "none", seeds=seeds)
    p = 1.0
    if items > 1:
        random = np.random.default_rng(seed)
        test = resample.shuffle_labels if pairing == "none" else resample.flip_labels
        pooled_a, pooled_b = np.mean(tables_a, axis=0), np.mean(tables_b, axis=0)
        p = max(test(pooled_a, pooled_b, statistic.of_sums, resamples, random), p_of(uncertainty))
    low, high = _within(uncertainty.ends(level), statistic)
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
        item_error=item_error(uncertainty),
        uncertainty=uncertainty,
    )


def verdict(
    comparison: Comparison, names: tuple[str, str] = ("A", "B"), margin: float | None = None, alpha: float = 0.05
) -> str:
    """Say in words what the comparison shows, and no more; after ``adjust`` it is the adjusted test that decides.

    Args:
        comparison: of two systems.
        names: of the first and of the second system.
        margin: a difference that does not matter; if given, equivalence is tested where no difference is shown.
        alpha: error rate of that test.
    """
    c, unit = comparison, f" {comparison.statistic.unit}" if comparison.statistic.unit else ""
    if c.items < 2:
        return f"no difference can be shown at 1 item: {names[1]} - {names[0]} is {_round(c.difference, c)}{unit}"
    facts = f"{_percent(c.level)}, {_items(c.items)}"
    facts += {"items": "", "shared": " that both have", "none": ", unpaired"}[c.pairing]
    facts += f", {_seeds(c.seeds)}, p = {c.p_adjusted:.2g}"
    facts += f" after Holm over {c.family}" if c.family > 1 else ""
    if caution := c.uncertainty.caution(c.level):
        facts += f" ({caution})"
    if c.better is not None:
        winner = names[0] if c.better == "a" else names[1]
        ends = sorted((abs(c.low), abs(c.high)))
        span = f"[{_round(ends[0], c)}, {_round(ends[1], c)}]"
        return f"{winner} is better by {_round(abs(c.difference), c)}{unit} {span}, {facts}"
    told = f"{names[1]} - {names[0]} is {_round(c.difference, c)}{unit} {_span(c)}, {facts}"
    if margin is not None and (test := c.equivalence(margin, alpha)).equivalent:
        span = f"[{_round(test.low, c)}, {_round(test.high, c)}], {_percent(1 - 2 * alpha)}"
        return f"equivalent within {margin:g}{unit} at {_items(c.items)}: {span}; {told}"
    return f"no difference shown at {_items(c.items)}: {told}"


def adjust(found: Mapping[Key, Comparison], alone: Key | None = None) -> dict[Key, Comparison]:
    """Return the comparisons with their p adjusted for their number (Holm); verdicts then come from the adjusted p.

    Args:
        found: comparisons that are judged together.
        alone: the one that was named beforehand; it is judged by its own p, and the others among themselves.
    """
    together = {key: c for key, c in found.items() if alone is None or key != alone}
    p = holm({key: c.p for key, c in together.items()})
    return {
        key: replace(c, family=len(together), p_adjusted=p[key]) if key in together else c for key, c in found.items()
    }


def items_needed(comparison: Comparison, difference: float | None = None, power: float = 0.8) -> int:
    """Return how many items of this kind would show a ``difference``, by the normal approximation.

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


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust the p of several comparisons so that one false alarm among all is as rare as stated (Holm 1979)."""
    out: dict[Key, float] = {}
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


def _within(ends: tuple[float, float], statistic: Statistic) -> tuple[float, float]:
    """Keep the ends of a difference within what the figure's bounds allow."""
    widest = statistic.bounds[1] - statistic.bounds[0]
    return max(ends[0], -widest), min(ends[1], widest)


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
    """Say how many seeds there were, and what one of them leaves out."""
    if seeds == (1, 1):
        return "1 seed (over items only)"
    if seeds[0] == seeds[1]:
        return f"{seeds[0]} seeds"
    said = f"{seeds[0]} and {seeds[1]} seeds"
    return said + " (of the single run over items only)" if 1 in seeds else said
