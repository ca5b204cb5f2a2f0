"""I34: no interval has width zero, shares are exact, and too few items for the level are said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean, ratio, share
from limbeck.measure.stats import compare, interval, verdict
from limbeck.measure.uncertainty import ShareDifference, items_for

RIGHT = share("right", "accuracy")
NATS = ratio("nll", "tokens", better="lower", unit="nats", bounds=(0, math.inf))


def scored(values) -> Scores:
    return Scores.of(map(str, range(len(values))), right=values)


@pytest.mark.parametrize(("right", "items"), [(12, 12), (0, 12), (7, 12), (1, 1), (90, 100)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_share_has_scipys_exact_interval(right: int, items: int, level: float):
    found = interval(scored([1.0] * right + [0.0] * (items - right)), RIGHT, level=level)
    exact = scipy_stats.binomtest(right, items).proportion_ci(level, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.method == "exact" and found.high > found.low


def test_twelve_right_of_twelve():
    assert interval(scored([1.0] * 12), RIGHT).describe() == "1.00 [0.74, 1.00], 95 %, 12 items"


def test_items_all_alike_have_width_and_say_so():
    halves = interval(scored([0.5] * 12), RIGHT)  # not right or wrong, so no share: bounded from the same reasoning
    unseen = 1 - 0.025 ** (1 / 12)
    assert (halves.low, halves.high) == pytest.approx((0.5 - unseen / 2, 0.5 + unseen / 2))
    assert halves.caution == "all items alike" and "all items alike" in halves.describe()
    free = interval(scored([0.5] * 12), mean("right"))
    assert (free.low, free.high) == (-math.inf, math.inf)


def test_systems_alike_on_every_item_are_not_known_to_be_equal():
    values = np.random.default_rng(0).normal(0, 1, 30)
    same = compare(scored(values), scored(values), mean("right"))
    assert same.low < 0 < same.high and same.p == 1 and "all items alike" in verdict(same)
    moved = compare(scored(values), scored(values + 0.25), mean("right"))
    assert moved.low < 0.25 < moved.high


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 1), (20, 20)])
def test_differences_of_shares_hold_what_was_seen_and_have_width(gained: int, lost: int, paired: bool):
    found = ShareDifference(gained, lost, (40, 40), paired)
    low, high = found.ends(0.95)
    assert -1 <= low <= (gained - lost) / 40 <= high <= 1 and high > low
    wide = found.ends(0.99)
    assert wide[0] <= low and wide[1] >= high


def test_differences_of_shares_cover():
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        both = random.random(25)
        a, b = (both < 0.7).astype(float), ((both + 0.2 * (random.random(25) < 0.5)) < 0.7).astype(float)
        found = compare(scored(a), scored(b), RIGHT, resamples=100)
        held += found.low <= -0.1 <= found.high
    assert held / 400 >= 0.93


@pytest.mark.parametrize("items", [12, 25])
def test_skewed_items_are_covered_where_a_percentile_interval_is_not(items: int):
    random, ours, theirs = np.random.default_rng(1), 0, 0
    for _ in range(400):
        x = random.exponential(1, items)
        found = interval(scored(x), mean("right"))
        ours += found.low <= 1 <= found.high
        drawn = x[random.integers(items, size=(300, items))].mean(axis=1)
        theirs += np.quantile(drawn, 0.025) <= 1 <= np.quantile(drawn, 0.975)
    assert ours / 400 >= 0.93 > theirs / 400


def test_too_few_items_are_said():
    assert [items_for(level) for level in (0.9, 0.95, 0.99)] == [5, 6, 8]
    few = interval(Scores.of("abcde", nll=[3.0, 4.0, 3.5, 2.0, 3.3], tokens=[1.0] * 5), NATS)
    assert few.caution == "too few items for 95 %"
    skewed = np.concatenate([np.full(11, 1.0) + np.arange(11) / 100, [50.0]])
    assert "as they are skewed" in interval(scored(skewed), mean("right")).caution
    assert interval(scored(np.random.default_rng(0).normal(0, 1, 30)), mean("right")).caution == ""


def test_a_perplexity_is_the_exponential_of_its_nats():
    from limbeck.measure.perplexity import NATS_PER_TOKEN, PERPLEXITY

    random = np.random.default_rng(0)
    tokens = random.integers(5, 60, 12).astype(float)
    scores = Scores.of(map(str, range(12)), nll=tokens * random.gamma(4, 0.75, 12), tokens=tokens)
    nats, perplexity = interval(scores, NATS_PER_TOKEN), interval(scores, PERPLEXITY)
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(nats.low), math.exp(nats.high)))
    huge = Scores.of("ab", nll=[1e6, 2e6], tokens=[1.0, 1.0])
    with np.errstate(all="ignore"):
        assert interval(huge, PERPLEXITY).value == math.inf
