"""I33: over seeds and items a comparison covers the truth and is as sharp as a mixed model, by simulation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean
from limbeck.measure.stats import compare, interval, verdict
from limbeck.measure.uncertainty import VarianceEstimate, of_difference

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "statistics"))

from simulation import DESIGNS, Design, outcome, peers

SCORE = mean("score")


def tables(side: np.ndarray) -> list[np.ndarray]:
    return [np.stack([run, np.ones_like(run)], axis=1) for run in side]


def test_the_variance_is_that_of_the_mean_squares():
    """Balanced data: the item, seed and residual mean squares, written out with loops."""
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (3, 20)), random.normal(0.2, 1, (3, 20))
    a, b = (x + random.normal(0, 2, 3)[:, None] for x in (a, b))  # seeds differ far beyond the noise
    found = of_difference(tables(a), tables(b), SCORE, paired_items=True, seeds="independent")
    assert isinstance(found, VarianceEstimate)
    gap = [sum(b[s][i] - a[s][i] for s in range(3)) / 3 for i in range(20)]
    centre = sum(gap) / 20
    items = sum((g - centre) ** 2 for g in gap) / 19 / 20
    seeds = noise = 0.0
    for side in (a, b):
        of_seed, of_item, grand = [x.mean() for x in side], [x.mean() for x in side.T], side.mean()
        seeds += sum((x - grand) ** 2 for x in of_seed) / 2 / 3
        left = sum((side[s][i] - of_seed[s] - of_item[i] + grand) ** 2 for s in range(3) for i in range(20))
        noise += left / (2 * 19) / 60
    assert found.item_variance == pytest.approx(items, rel=1e-9)
    assert found.variance == pytest.approx(items + seeds - noise, rel=1e-9)
    assert found.seed_variance == pytest.approx(seeds - noise, rel=1e-9)
    assert 4 <= found.df < 5  # two systems of three seeds leave four


def test_the_setting_of_the_report_keeps_its_power():
    """50 shared items, noise 0.3, effect 0.15: three seeds showed it in 4 to 11 % of repeats."""
    found = {seeds: outcome(DESIGNS[0], seeds, 150, seed=7) for seeds in (1, 2, 3, 5)}
    assert 0.55 < found[1].power < 0.8
    assert found[3].power >= 0.85 and found[3].power >= 0.9 * found[3].mixed
    assert found[5].power >= 0.97
    assert found[2].power < found[3].power <= found[5].power + 0.01
    assert all(o.coverage >= 0.90 for o in found.values())


@pytest.mark.parametrize("design", [d for d in DESIGNS if d.seed_sd], ids=lambda d: d.name)
def test_seed_spread_is_covered(design: Design):
    found = outcome(design, 3, 200, seed=3)
    assert found.coverage >= 0.905  # 0.95 less three standard errors of 200 draws
    if design.figure == "mean":
        assert found.power >= 0.9 * found.mixed - 0.03


def test_two_seeds_cover_and_one_speaks_of_items_only():
    spread = replace(DESIGNS[0], seed_sd=0.1)
    assert outcome(spread, 2, 200, seed=5).coverage >= 0.9
    assert outcome(spread, 1, 200, seed=5).coverage < 0.8  # which is why the words must say so
    random = np.random.default_rng(0)
    a, b = (Scores.of(map(str, range(50)), score=random.normal(m, 1, 50)) for m in (0, 0.1))
    assert "1 seed (over items only)" in verdict(compare(a, b, SCORE))
    assert "2 and 1 seeds (of the single run over items only)" in verdict(compare([a, a], b, SCORE))


def test_the_mixed_model_of_the_simulation_covers_too():
    """The peer is no straw man: its interval holds the truth."""
    assert outcome(DESIGNS[2], 4, 200, seed=1).mixed_coverage >= 0.9
    a, b = np.zeros((1, 10)), np.full((1, 10), 5.0) + np.random.default_rng(0).normal(0, 0.1, (1, 10))
    assert peers(a, b, replace(DESIGNS[0], items=10, effect=5.0))[:2] == (True, True)


def test_more_seeds_narrow_a_single_figure():
    random = np.random.default_rng(2)
    items = random.normal(0, 1, 40)
    of_seed = (0.5, -0.5, 0.4, -0.4, 0.5, -0.5, 0.4, -0.4)
    runs = [Scores.of(map(str, range(40)), score=items + s + random.normal(0, 0.3, 40)) for s in of_seed]
    widths = [interval(runs[:k], SCORE).high - interval(runs[:k], SCORE).low for k in (3, 8)]
    assert widths[1] < widths[0]
