"""Systems with a known difference, drawn again and again: how often an interval holds it, how often it is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, mean, ratio
from limbeck.measure.stats import Pairing, Seeds, compare

__all__ = ["DESIGNS", "Design", "Outcome", "coverage_of", "draw", "outcome", "peers"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Two systems, their items and seeds; ``score = item + system + item x system + seed + noise``.

    Attributes:
        name: what the table calls it.
        seed_sd: spread of the seeds' true figures.
        system_sd: spread over items of what the second system changes.
        noise: of an item under one seed.
        item_sd: spread of the items.
        effect: true difference of the means.
        shared: part of the seeds' variance that run i of both systems have in common.
        items: of each system.
        pairing: ``items``, or ``none`` where each system has items of its own.
        figure: ``mean`` or ``ratio`` (nats over tokens, items of 5 to 60 tokens).
    """

    name: str
    seed_sd: float = 0.0
    system_sd: float = 0.0
    noise: float = 0.3
    item_sd: float = 1.0
    effect: float = 0.15
    shared: float = 0.0
    items: int = 50
    pairing: Pairing = "items"
    figure: str = "mean"

    @property
    def seeds(self) -> Seeds:
        """How the comparison is asked to treat the seeds."""
        return "paired" if self.shared else "independent"

    @property
    def statistic(self) -> Statistic:
        """The figure compared."""
        if self.figure == "mean":
            return mean("score")
        return ratio("nll", "tokens", better="lower")

    @property
    def truth(self) -> float:
        """The difference of the figures of all items that could be drawn."""
        return self.effect


DESIGNS = (
    Design("no seed spread"),
    Design("seed spread 0.04", seed_sd=0.04),
    Design("seed spread 0.1", seed_sd=0.1),
    Design("seed spread 0.3", seed_sd=0.3, effect=0.45),
    Design("seed spread 0.1, items react by 0.3", seed_sd=0.1, system_sd=0.3),
    Design("paired seeds, spread 0.1, 70 % shared", seed_sd=0.1, shared=0.7),
    Design("unpaired items, seed spread 0.1", seed_sd=0.1, pairing="none", effect=0.6),
    Design("nats per token, seed spread 0.05", seed_sd=0.05, item_sd=0.3, figure="ratio"),
)
"""The settings of docs/results/raw/reliability.md; the first is that of 50 shared items, noise 0.3, effect 0.15."""


@dataclass(frozen=True)
class Outcome:
    """Shares of the draws: intervals that hold the truth, and differences that are shown in the right direction."""

    coverage: float
    power: float
    oracle: float
    mixed: float
    mixed_coverage: float


def draw(design: Design, seeds: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw (seeds, items) scores of both systems; without pairing the items differ."""
    d, n = design, design.items
    common = random.normal(0, 1, seeds) * d.seed_sd * np.sqrt(d.shared)
    own = d.seed_sd * np.sqrt(1 - d.shared)
    base = random.normal(0, d.item_sd, n)
    other = base if d.pairing == "items" else random.normal(0, d.item_sd, n)
    sides = []
    for items, moved in ((base, np.zeros(n)), (other, d.effect + d.system_sd * random.normal(0, 1, n))):
        of_seed = common + own * random.normal(0, 1, seeds)
        sides.append(items + moved + of_seed[:, None] + d.noise * random.normal(0, 1, (seeds, n)))
    return sides[0], sides[1]


def peers(a: Floats, b: Floats, design: Design) -> tuple[bool, bool, bool]:
    """Judge paired or unpaired means as two peers would.

    Returns:
        Whether a z test that knows every variance shows the difference, whether REML with Satterthwaite's degrees of
        freedom does (balanced data: from mean squares, components kept at 0 or above), and whether its interval holds
        the truth.
    """
    (seeds, n), d = a.shape, design
    seen = float(b.mean() - a.mean())
    per_item = d.noise**2 / (n * seeds)
    known = 2 * per_item + d.system_sd**2 / n
    if d.pairing == "none":
        known += 2 * d.item_sd**2 / n
    if seeds > 1:
        known += 2 * d.seed_sd**2 * (1 - d.shared) / seeds
    oracle = seen / np.sqrt(known) > stats.norm.ppf(0.975)
    groups = [b - a] if d.shared and seeds > 1 else [a, b]
    parts = [b.mean(0) - a.mean(0)] if d.pairing == "items" else [a.mean(0), b.mean(0)]
    items = sum(float(p.var(ddof=1)) / n for p in parts)
    item_df = (n - 1) * len(parts)
    variance, df = items, float(item_df)
    if seeds > 1:
        over = sum(float(g.mean(1).var(ddof=1)) / seeds for g in groups)
        left = [g - g.mean(0) - g.mean(1, keepdims=True) + g.mean() for g in groups]
        residual_df = (n - 1) * (seeds - 1) * len(groups)
        noise = sum(float((r**2).sum()) for r in left) / residual_df * len(groups) / (n * seeds)
        if over > noise:
            variance = items + over - noise
            seed_df = (seeds - 1) * len(groups)
            df = variance**2 / (items**2 / item_df + over**2 / seed_df + noise**2 / residual_df)
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)
    return bool(oracle), bool(seen > half), bool(abs(seen - d.effect) <= half)


def outcome(design: Design, seeds: int, draws: int, seed: int = 0) -> Outcome:
    """Compare ``draws`` pairs of systems with ``limbeck.measure.stats.compare`` and with the peers."""
    random = np.random.default_rng([seed, seeds])
    rows = []
    for number in range(draws):
        a, b = draw(design, seeds, random)
        runs_a, runs_b = _runs(a, b, design, random)
        c = compare(
            runs_a, runs_b, design.statistic, pairing=design.pairing, seeds=design.seeds, resamples=400, seed=number
        )
        rows.append((c.low <= design.truth <= c.high, c.shown and c.difference > 0, *peers(a, b, design)))
    share = np.mean(np.array(rows, dtype=float), axis=0)
    return Outcome(*(float(x) for x in share))


def _runs(a: Floats, b: Floats, design: Design, random: np.random.Generator) -> tuple[list[Scores], list[Scores]]:
    out = []
    lengths = random.integers(5, 61, design.items).astype(float)
    for name, side in (("a", a), ("b", b)):
        prefix = "i" if design.pairing == "items" else name
        ids = [f"{prefix}{i}" for i in range(design.items)]
        if design.figure == "mean":
            out.append([Scores.of(ids, score=run) for run in side])
        else:
            out.append([Scores.of(ids, nll=(4 + run) * lengths, tokens=lengths) for run in side])
    return out[0], out[1]


def coverage_of(
    sample: Callable[[np.random.Generator], Scores],
    truth: float,
    ends: Callable[[Scores, int], tuple[float, float]],
    draws: int,
    seed: int = 0,
) -> tuple[float, float]:
    """Return how often ``ends`` hold ``truth`` over ``draws`` samples, and the median width of the interval."""
    random = np.random.default_rng(seed)
    held, widths = 0, []
    for number in range(draws):
        low, high = ends(sample(random), number)
        held += low <= truth <= high
        widths.append(high - low)
    return held / draws, float(np.median(widths))
