"""How far a figure, or a difference of two, may be from the truth: over items, and over seeds if there are several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri, stdtrit

from limbeck.measure.statistic import Statistic

__all__ = [
    "Difference",
    "ShareDifference",
    "Seeds",
    "ExactShare",
    "VarianceEstimate",
    "Uncertainty",
    "item_error",
    "items_for",
    "of_difference",
    "of_figure",
    "p_of",
    "whole_variance",
]

Floats = NDArray[np.float64]
OfSums = Callable[[Floats], Floats]
Seeds = Literal["independent", "paired"]

_SKEWED = 0.35  # skewness of the mean from which the simulations of docs/results/raw/reliability.md fall below 93 %
_FLOOR = 0.65  # least seed variance counted, as a share of what resampling noise alone causes in the seeds' figures
_TWO_SEEDS = 1.3  # how much more than by Satterthwaite a spread over two seeds a system is doubted, to keep 93 %
_ALIKE = 1e-12  # spread of items, relative to their size, that counts as none


class Uncertainty(Protocol):
    """What can be said of a figure at any level."""

    def ends(self, level: float) -> tuple[float, float]:
        """Lower and upper end of the interval; a higher level contains a lower one."""

    def caution(self, level: float) -> str:
        """Return why the items may not carry ``level``, in words; empty where they do."""


@dataclass(frozen=True, slots=True)
class ExactShare:
    """A share of items that are right or wrong: the exact interval (Clopper and Pearson 1934).

    Attributes:
        right: how many items.
        items: of how many.
    """

    right: int
    items: int

    def ends(self, level: float) -> tuple[float, float]:
        """Return the ends of the exact interval; it never has width zero."""
        tail, k, n = (1 - level) / 2, self.right, self.items
        low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
        high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
        return low, high

    def caution(self, level: float) -> str:
        """Return nothing: the exact interval holds its level with any number of items."""
        return ""


@dataclass(frozen=True, slots=True)
class ShareDifference:
    """The difference of two shares, by adjusted Wald intervals.

    Of the same items Bonett and Price (2012), of different ones Agresti and Caffo (2000): both add observations before
    they compute a variance, so that no interval has width zero.

    Attributes:
        gained: items right in the second system alone; unpaired: right in the second.
        lost: items right in the first system alone; unpaired: right in the first.
        items: of the second and of the first system.
        paired: whether the items are the same.
    """

    gained: int
    lost: int
    items: tuple[int, int]
    paired: bool

    def ends(self, level: float) -> tuple[float, float]:
        """Return the ends within -1 to 1, the observed difference between them."""
        (n, m), z = self.items, float(ndtri((1 + level) / 2))
        if self.paired:
            b, a = (self.gained + 1) / (n + 2), (self.lost + 1) / (n + 2)
            error = math.sqrt((a + b - (b - a) ** 2) / (n + 2))
        else:
            b, a = (self.gained + 1) / (n + 2), (self.lost + 1) / (m + 2)
            error = math.sqrt(b * (1 - b) / (n + 2) + a * (1 - a) / (m + 2))
        seen = self.gained / n - self.lost / m
        return max(-1.0, min(seen, b - a - z * error)), min(1.0, max(seen, b - a + z * error))

    def caution(self, level: float) -> str:
        """Say where no arrangement of so few items could reach the level."""
        return _too_few(min(self.items), level) if self.paired else ""


@dataclass(frozen=True, slots=True)
class VarianceEstimate:
    """A mean, ratio or difference with its variance over items and over seeds.

    The item part is Student's t on the transformed scale of Hall (1992), which removes skewness, and no narrower than
    Student's t itself on either side. The seed part is added to it by the squares of the half-widths (Zou and Donner
    2008), so that with symmetric items the whole is ``t * sqrt(variance)``.

    Attributes:
        value: the figure.
        items: smallest number of items of a system.
        item_variance: squared standard error over items, resampling noise included.
        item_df: its degrees of freedom.
        skewness: of the mean's sampling distribution.
        variance: squared standard error over items and seeds.
        df: of ``variance`` (Satterthwaite 1946).
        seed_variance: the part that the choice of seeds causes, at least 0.
        log: all of this is of the figure's logarithm.
        reach: farthest below and above ``value`` that unseen items may draw the figure where all seen ones are alike.
    """

    value: float
    items: int
    item_variance: float
    item_df: float
    skewness: float
    variance: float
    df: float
    seed_variance: float
    reach: tuple[float, float]
    log: bool = False

    @property
    def alike(self) -> bool:
        """Whether the items do not differ, so that they tell nothing of their spread."""
        return self.item_variance == 0

    def ends(self, level: float) -> tuple[float, float]:
        """Return the ends; minus and plus infinity where one item, or items all alike, leave everything open."""
        if self.items < 2:
            return (0.0 if self.log else -math.inf), math.inf
        t = _t(level, self.df)
        if self.alike:
            unseen = 1 - ((1 - level) / 2) ** (1 / self.items)
            below, above = (unseen * r if r else 0.0 for r in self.reach)
            seeds = t * t * self.variance
        else:
            own, variance = _t(level, self.item_df), min(self.item_variance, self.variance)
            error = math.sqrt(variance)
            below = error * max(own, _unskewed(own, self.skewness))
            above = error * max(own, -_unskewed(-own, self.skewness))
            seeds = max(0.0, t * t * self.variance - own * own * variance)
        low, high = self.value - math.hypot(below, math.sqrt(seeds)), self.value + math.hypot(above, math.sqrt(seeds))
        return (_exp(low), _exp(high)) if self.log else (low, high)

    def caution(self, level: float) -> str:
        """Say where items are alike, too few, or too skewed for their number."""
        if self.items < 2:
            return ""
        if self.alike:
            return "all items alike"
        if few := _too_few(self.items, level):
            return few
        if abs(self.skewness) > _SKEWED:
            return f"too few items for {100 * level:.4g} %, as they are skewed"
        return ""


Difference = ShareDifference | VarianceEstimate


def of_figure(tables: Sequence[Floats], statistic: Statistic) -> Uncertainty:
    """Return what can be said of the mean over seeds of a figure.

    Args:
        tables: (n, k) of each seed, the same items in the same order.
        statistic: the figure.
    """
    table = tables[0]
    if len(tables) == 1 and statistic.is_share(table):
        return ExactShare(int(table[:, 0].sum()), len(table))
    low, high = statistic.bounds
    value = float(np.mean([statistic.of_sums(t.sum(axis=0)) for t in tables]))
    if statistic.log:
        statistic, value = replace(statistic, of_sums=_log_of(statistic.of_sums)), math.log(value)
        low, high = (math.log(b) if b > 0 else -math.inf for b in (low, high))
    runs = _Runs.of(tables, statistic)
    found = _spread(value, runs.items.mean(axis=0), (len(table),), [runs], (value - low, high - value), runs.size)
    return replace(found, log=statistic.log)


def of_difference(
    tables_a: Sequence[Floats], tables_b: Sequence[Floats], statistic: Statistic, *, paired_items: bool, seeds: Seeds
) -> Difference:
    """Return what can be said of the difference ``b - a`` of two systems, each the mean over its seeds.

    With one seed a side the items alone are counted. With several, the variance is that of a mixed model with crossed
    random effects of items and seeds, from its mean squares (exact for balanced data): items, plus what the seeds'
    figures vary beyond the noise that a finite number of items causes in them.

    Args:
        tables_a: (n, k) of each seed of the first system, the same items in the same order.
        tables_b: of the second system.
        statistic: the figure.
        paired_items: rows of both systems are of the same items.
        seeds: ``paired`` where run i of both started alike. Of two seeds a side the pairs are not used: two
            differences leave one degree of freedom, and what the pairs share can only make the interval wider.
    """
    if len(tables_a) == len(tables_b) == 1 and all(statistic.is_share(t) for t in (tables_a[0], tables_b[0])):
        a, b = tables_a[0][:, 0], tables_b[0][:, 0]
        if paired_items:
            return ShareDifference(int((b > a).sum()), int((a > b).sum()), (len(b), len(a)), True)
        return ShareDifference(int(b.sum()), int(a.sum()), (len(b), len(a)), False)
    first, second = _Runs.of(tables_a, statistic), _Runs.of(tables_b, statistic)
    value = float(second.figures.mean() - first.figures.mean())
    if paired_items:
        deviations = [second.items.mean(axis=0) - first.items.mean(axis=0)]
    else:
        deviations = [second.items.mean(axis=0), -first.items.mean(axis=0)]
    runs, scale = [first, second], max(first.size, second.size)
    if seeds == "paired" and paired_items and len(tables_a) > 2:
        runs = [_Runs(second.figures - first.figures, second.items - first.items)]
    low, high = statistic.bounds
    widest = high - low
    if not math.isfinite(widest):  # no bounds: an unseen item may differ as much as the items themselves do
        every = np.concatenate([(r.items + r.figures[:, None]).ravel() for r in (first, second)])
        widest = float(np.ptp(every)) or math.inf
    sizes = tuple(len(d) for d in deviations)
    return _spread(value, np.concatenate(deviations), sizes, runs, (widest + value, widest - value), scale)


def p_of(uncertainty: Uncertainty) -> float:
    """Return the smallest error rate at which the interval leaves 0 out: the two-sided p that agrees with it."""

    def holds_zero(p: float) -> bool:
        low, high = uncertainty.ends(1 - p)
        return low <= 0 <= high

    if holds_zero(1 - 1e-9):
        return 1.0
    below, above = -40.0, 0.0  # of log p
    for _ in range(60):
        middle = (below + above) / 2
        if holds_zero(math.exp(middle)):
            below = middle
        else:
            above = middle
    return math.exp(above)


def item_error(difference: Difference) -> float:
    """Return the standard error that the choice of items alone causes."""
    if isinstance(difference, VarianceEstimate):
        return math.sqrt(difference.item_variance)
    n, m = difference.items
    b, a = difference.gained / n, difference.lost / m
    if difference.paired:
        return math.sqrt(max(0.0, a + b - (b - a) ** 2) / max(1, n - 1))
    return math.sqrt(b * (1 - b) / max(1, n - 1) + a * (1 - a) / max(1, m - 1))


def items_for(level: float) -> int:
    """Return how many paired items it takes for the rarest arrangement of signs to be as rare as ``1 - level``."""
    return math.ceil(1 + math.log2(1 / (1 - level)) - 1e-9)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Figures of one system's seeds, (S,), and how far each item draws them, (S, n) with rows of mean 0."""

    figures: Floats
    items: Floats

    @classmethod
    def of(cls, tables: Sequence[Floats], statistic: Statistic) -> _Runs:
        """Compute jackknife pseudo-values: those of a mean are its items."""
        figures, items = [], []
        for table in tables:
            total, n = table.sum(axis=0), len(table)
            figures.append(float(statistic.of_sums(total)))
            without = statistic.of_sums(total - table) if n > 1 else np.zeros(1)
            with np.errstate(invalid="ignore"):  # infinite figures: their items are not numbers
                items.append((n - 1) * (without.mean() - without))
        return cls(np.array(figures), np.stack(items))

    @property
    def size(self) -> float:
        """Largest figure without one item: what its rounding is relative to."""
        return float(np.abs(self.figures).max() + np.abs(self.items).max() / self.items.shape[1])

    def residual(self) -> float:
        """Return the mean square of what neither item nor seed explains."""
        left = self.items - self.items.mean(axis=0)
        seeds, n = left.shape
        square: float = np.square(left).sum()
        return float(square / ((seeds - 1) * (n - 1)))


def _spread(
    value: float,
    deviations: Floats,
    sizes: tuple[int, ...],
    runs: Sequence[_Runs],
    reach: tuple[float, float],
    scale: float,
) -> VarianceEstimate:
    """Put item part and seed part together; ``deviations`` holds the items of one or two systems after each other."""
    items = min(sizes)
    if items < 2 or not np.isfinite(deviations).all():  # a perplexity may overflow
        return VarianceEstimate(value, items, math.inf, 1, 0.0, math.inf, 1, 0.0, reach)
    parts, third = [], 0.0
    for part in np.split(deviations, np.cumsum(sizes)[:-1]):
        n = len(part)
        centred = part - part.mean()
        centred[np.abs(centred) <= _ALIKE * n * scale] = 0.0
        parts.append((float((centred**2).sum()) / ((n - 1) * n), n - 1))
        if n > 2:
            third += float((centred**3).sum()) * n / ((n - 1) * (n - 2)) / n**2
    item_variance = math.fsum(v for v, _ in parts)
    item_df = _satterthwaite(parts)
    skewness = third / item_variance**1.5 if item_variance > 0 else 0.0
    several = [r for r in runs if len(r.figures) > 1]
    if not several:
        return VarianceEstimate(value, items, item_variance, item_df, skewness, item_variance, item_df, 0.0, reach)
    over_seeds = [(float(r.figures.var(ddof=1)) / len(r.figures), len(r.figures) - 1) for r in several]
    of_seeds = math.fsum(v for v, _ in over_seeds)
    noise = math.fsum(r.residual() / r.items.size for r in several)
    equal = len({df for _, df in over_seeds}) == 1
    seed_df = float(sum(df for _, df in over_seeds)) if equal else _satterthwaite(over_seeds)
    least_df = min(df for _, df in over_seeds)
    variance, df = whole_variance(item_variance, of_seeds, noise, seed_df=seed_df, item_df=item_df, least_df=least_df)
    return VarianceEstimate(
        value, items, item_variance, item_df, skewness, variance, df, max(0.0, of_seeds - noise), reach
    )


def whole_variance(
    items: float, seeds: float, noise: float, *, seed_df: float, item_df: float, least_df: float
) -> tuple[float, float]:
    """Add the seed component to the item variance; return the variance and its degrees of freedom.

    ``seeds`` holds resampling ``noise`` that ``items`` holds as well, so it is taken off once. A component that comes
    out small is worth more degrees of freedom than ``seed_df``, as the item variance then carries the whole; how far
    this may go without losing coverage was found by simulation (``benchmarks/statistics/mean_squares.py``).
    ``least_df`` is of the system with the fewest seeds.
    """
    floor = _FLOOR * min(1.0, max(0.0, seed_df - 1))
    spared = min(0.2, max(0.0, 0.08 * (seed_df - 1)))
    variance = max(items - noise + max(seeds, floor * noise), _FLOOR * items)
    if variance == 0:
        return 0.0, seed_df
    few = _TWO_SEEDS if least_df <= 1 else 1.0
    doubt = items**2 / item_df + few * max(0.0, seeds - spared * noise) ** 2 / seed_df
    return variance, max(min(item_df, seed_df), variance**2 / doubt)


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    doubt = sum(v * v / df for v, df in parts)
    return float(sum(v for v, _ in parts) ** 2 / doubt) if doubt > 0 else float(min(df for _, df in parts))


def _t(level: float, df: float) -> float:
    return float(stdtrit(df, (1 + level) / 2))


def _unskewed(t: float, skewness: float) -> float:
    """Invert ``t + s t^2 / 3 + s^2 t^3 / 27 + s / 6``, which makes t of a skewed mean Student's (Hall 1992)."""
    if abs(skewness) < 1e-6:
        return t
    return float(np.cbrt(1 + skewness * (t - skewness / 6)) - 1) * 3 / skewness


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _log_of(of_sums: OfSums) -> OfSums:
    def logarithm(sums: Floats) -> Floats:
        return np.log(of_sums(sums))

    return logarithm


def _too_few(items: int, level: float) -> str:
    return f"too few items for {100 * level:.4g} %" if items < items_for(level) else ""
