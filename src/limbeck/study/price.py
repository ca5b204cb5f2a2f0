"""Price before purchase: predict an arm's figure, with an interval, from a probe of at most 2 % of its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

__all__ = ["LEAST", "Price", "predict"]

LEAST = 5
"""Arms with both probe and figure that a prediction needs."""


@dataclass(frozen=True, slots=True)
class Price:
    """A predicted figure.

    Attributes:
        value: expected.
        low: lower end of the prediction interval.
        high: upper end.
        level: of the interval.
        arms: that it was learned from.
    """

    value: float
    low: float
    high: float
    level: float
    arms: int


def predict(probes: Sequence[float], figures: Sequence[float], probe: float, level: float = 0.9) -> Price | None:
    """Predict the figure of a new arm by least squares on the arms that are done.

    The interval is the classic one for a new observation (Student's t with n - 2 degrees of freedom).

    Args:
        probes: probe of each arm that is done.
        figures: what each came to.
        probe: of the new arm.
        level: share of such intervals that hold the figure.

    Returns:
        None with fewer than five arms, or where all probes are equal.
    """
    x, y = np.asarray(probes, dtype=np.float64), np.asarray(figures, dtype=np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    n = len(x)
    if n < LEAST or float(np.ptp(x)) == 0 or not math.isfinite(probe):
        return None
    centre = x - x.mean()
    squares = float(centre @ centre)
    slope = float(centre @ y) / squares
    value = float(y.mean()) + slope * (probe - float(x.mean()))
    rest = y - y.mean() - slope * centre
    error = math.sqrt(float(rest @ rest) / (n - 2) * (1 + 1 / n + (probe - float(x.mean())) ** 2 / squares))
    half = float(t.ppf((1 + level) / 2, n - 2)) * error
    return Price(value, value - half, value + half, level, n)
