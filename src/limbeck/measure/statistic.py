"""Figures of a whole set as functions of sums over its items, so that every one can be resampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.measure.scores import Scores

__all__ = ["Better", "Statistic", "mean", "ratio", "share"]

Better = Literal["lower", "higher"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure of a set, computed from sums of per-item columns alone: a mean, a ratio, a perplexity, corpus chrF.

    Attributes:
        name: what it is called in reports.
        columns: the per-item scores that are summed, k of them.
        of_sums: sums (..., k) -> figures (...); vectorised, so that thousands of resamples cost one call. The sums may
            be those of any number of items: the figure must not change when all are multiplied by one factor.
        better: which direction is an improvement.
        unit: such as ``nats``; empty for a pure number.
        bounds: values that the figure cannot leave, such as 0 and 1 for a share; no interval reaches beyond them.
        log: the figure is an exponential, as a perplexity is: its interval is that of its logarithm.
    """

    name: str
    columns: tuple[str, ...]
    of_sums: Callable[[Floats], Floats]
    better: Better = "higher"
    unit: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False

    def table(self, scores: Scores) -> Floats:
        """Return (n, k) what is summed; the column ``1`` counts items."""
        count = np.ones(len(scores))
        return np.stack([count if name == COUNT else scores[name] for name in self.columns], axis=1)

    def value(self, scores: Scores) -> float:
        """Return the figure over all items of ``scores``."""
        return float(self.of_sums(self.table(scores).sum(axis=0)))

    def is_share(self, table: Floats) -> bool:
        """Return whether ``table`` makes the figure a share of items: a mean of zeros and ones."""
        if self.of_sums is not _quotient or self.columns[1] != COUNT:
            return False
        return bool(np.isin(table[:, 0], (0.0, 1.0)).all())


COUNT = "1"
"""Name of the column of ones: its sum is the number of items."""


def mean(
    column: str,
    *,
    name: str | None = None,
    better: Better = "higher",
    unit: str = "",
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Statistic:
    """Return the mean over items of one score, called after its column unless it has a ``name``."""
    return Statistic(name or column, (column, COUNT), _quotient, better, unit, bounds)


def ratio(
    numerator: str,
    denominator: str,
    *,
    name: str | None = None,
    better: Better = "higher",
    unit: str = "",
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Statistic:
    """Return a sum over a sum, such as nats over tokens: every token weighs the same, whatever item it is in."""
    return Statistic(name or f"{numerator}/{denominator}", (numerator, denominator), _quotient, better, unit, bounds)


def share(column: str, name: str) -> Statistic:
    """Return the mean over items of a score from 0 to 1, under another name; no interval leaves 0 to 1."""
    return Statistic(name, (column, COUNT), _quotient, bounds=(0, 1))


def _quotient(sums: Floats) -> Floats:
    """First sum over second; a resample without anything in the denominator has the figure 0."""
    below = sums[..., 1]
    return np.divide(sums[..., 0], below, out=np.zeros_like(below), where=below != 0)
