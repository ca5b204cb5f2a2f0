"""Sequential paired tests by betting: valid at every look, for harm and for the absence of harm above a margin.

A gambler bets against "no harm" (and another against "harm of at least the margin") on each item's paired difference.
If the hypothesis is true, the capital is a non-negative martingale that starts at 1, so the probability that it ever
reaches ``1 / alpha`` is at most ``alpha`` (Ville 1939), whenever one stops. The stakes are those of Wald's sequential
probability ratio test of 0 against the margin (against a larger harm, once earlier items show one), with the second
moment of the differences learned from earlier items (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting"). For differences of right and wrong answers the test is exact; unbounded ones are clipped at 0.9
of the capital, which is exact where they are symmetric around the hypothesis and approximate elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from limbeck.errors import DataError

__all__ = [
    "Betting",
    "adjusted",
    "bet",
    "confidence_sequence",
    "items_for",
    "more_items",
    "smallest_difference",
]

Floats = NDArray[np.float64]

_MOST = 0.9  # share of the capital that one item may cost
_EVENTS = 4.0  # discordant items that the planned rate counts for, beside those observed
_SURE = 1.5  # standard errors below the mean so far: harm that the stakes may count on
_PILOT = 20  # items that only tell the spread, where none was planned


@dataclass(frozen=True, slots=True)
class Betting:
    """Log capital after each item, in nats.

    Attributes:
        harm: (..., n) against "the mean difference is at most 0".
        no_harm: (..., n) against "the mean difference is at least the margin".
    """

    harm: Floats
    no_harm: Floats


def bet(differences: Floats, margin: float, spread: float | None = None) -> Betting:
    """Bet on every item in order.

    Args:
        differences: (..., n) harm of each item, positive where the smaller model is worse, in the order of looking.
        margin: largest harm that is accepted.
        spread: planned mean square of the differences; of right and wrong answers the share that changes. A wrong plan
            costs items, never validity. None: nothing is staked on the first 20 items, which tell it.

    Raises:
        DataError: margin or spread is not above 0.
    """
    if margin <= 0 or (spread is not None and spread <= 0):
        raise DataError(f"margin and planned spread must be above 0 (got {margin:g} and {spread})")
    seen = np.cumsum(differences**2, axis=-1) - differences**2  # of the items before
    index = np.arange(differences.shape[-1])
    if spread is None:
        known = index >= _PILOT
        moment = seen / np.maximum(index, 1)
    else:
        count = _EVENTS / spread
        known = np.ones(len(index), dtype=np.bool_)
        moment = (_EVENTS + seen) / (count + index)
    mean = (np.cumsum(differences, axis=-1) - differences) / np.maximum(index, 1)
    aim = np.maximum(margin, mean - _SURE * np.sqrt(moment / np.maximum(index, 1)))  # a large harm earns larger stakes
    # no smaller than the aim's own square: a difference far below the margin must not count as harm
    harm = np.where(known, aim / np.maximum(moment, aim**2), 0.0) * differences
    harm = np.log1p(np.clip(harm, -_MOST, _MOST))
    no_harm = np.where(known, margin / (moment + margin**2), 0.0) * (margin - differences)
    no_harm = np.log1p(np.clip(no_harm, -_MOST, _MOST))
    return Betting(np.cumsum(harm, axis=-1), np.cumsum(no_harm, axis=-1))


def adjusted(log_capital: Sequence[float]) -> list[float]:
    """Adjust several log capitals for their number, whatever their dependence.

    Closed testing with the arithmetic mean (Vovk and Wang 2021, "E-values: calibration, combination and applications",
    section 5): the smallest mean of any set of capitals that holds the one judged. Rejecting where it reaches
    ``1 / alpha`` keeps the chance of any false alarm among all at ``alpha``.
    """
    order = sorted(log_capital)
    out = []
    for own in log_capital:
        others = list(order)
        others.remove(own)
        total, least = np.exp(own), float(own)
        for count, other in enumerate(others, start=2):
            total += np.exp(other)
            least = min(least, math.log(total / count) if total > 0 else -math.inf)
        out.append(least)
    return out


def smallest_difference(items: int, spread: float, alpha: float = 0.05, power: float = 0.9) -> float:
    """Return the smallest mean difference that ``items`` show with probability ``power``.

    A bet of the true difference d on items of mean square v multiplies the capital by about exp(d^2 / 2v) an item, with
    standard deviation d / sqrt(v) of its logarithm; the chance to reach ``1 / alpha`` is at least ``power`` where the
    mean lies the corresponding normal quantile above the bar.
    """
    z = float(ndtri(power))
    return (z + math.sqrt(z * z + 2 * math.log(1 / alpha))) * math.sqrt(spread / items)


def items_for(difference: float, spread: float, alpha: float = 0.05, power: float = 0.9) -> int:
    """Return how many items show ``difference`` with probability ``power``: the inverse of ``smallest_difference``."""
    return math.ceil((smallest_difference(1, spread, alpha, power) / difference) ** 2)


def more_items(
    differences: Floats, margin: float, capital: tuple[float, float], alpha: tuple[float, float], most: int = 10_000_000
) -> int:
    """Estimate how many more items decide, if they are like those seen: the nearer of the two answers.

    Args:
        differences: (n,) seen.
        margin: largest harm that is accepted.
        capital: log capital against "no harm" and against "harm of the margin", now.
        alpha: bar of each, already divided by the number of harms where they are corrected.
        most: answer where the differences seen favour neither.
    """
    mean, moment = float(differences.mean()), float((differences**2).mean())
    moment = max(moment, margin * margin / max(len(differences), 1))
    stakes = margin / moment, margin / (moment + margin**2)
    around = float(((margin - differences) ** 2).mean())
    growth = (
        stakes[0] * mean - stakes[0] ** 2 * moment / 2,
        stakes[1] * (margin - mean) - stakes[1] ** 2 * around / 2,
    )
    waits = [(math.log(1 / a) - c) / g for a, c, g in zip(alpha, capital, growth, strict=True) if g > 0]
    return int(min(max(1, math.ceil(min(waits))), most)) if waits else most


def confidence_sequence(differences: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return an interval for the mean that holds at every look together.

    Asymptotic confidence sequence, tightest about the number of items given (Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence sequences", equation 2).
    """
    n, alpha = len(differences), 1 - level
    mean, spread = float(differences.mean()), float(differences.std())
    if n < 2 or spread == 0:
        return -math.inf, math.inf
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n
    half = spread * math.sqrt(2 * (n * rho2 + 1) / (n * n * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
    return mean - half, mean + half
