from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from limbeck.errors import DataError
from limbeck.study.sequential import adjusted, bet, confidence_sequence, items_for, more_items, smallest_difference

BAR = math.log(1 / 0.05)


def answers(rng: np.random.Generator, shape: tuple[int, int], discordant: float, harm: float) -> np.ndarray:
    u = rng.random(shape)
    worse, better = (discordant + harm) / 2, (discordant - harm) / 2
    return np.where(u < worse, 1.0, np.where(u < worse + better, -1.0, 0.0))


def exact_mcnemar_power(items: int, discordant: float, harm: float) -> float:
    """Power of the two-sided exact McNemar test at 5 %, by summing over every number of discordant pairs."""
    pairs = np.arange(items + 1)
    weight = binom.pmf(pairs, items, discordant)
    pairs, weight = pairs[weight > 1e-9], weight[weight > 1e-9]
    least = binom.isf(0.025, pairs, 0.5) + 1
    return float((weight * binom.sf(least - 1, pairs, (discordant + harm) / 2 / discordant)).sum())


def slow_capital(d: list[float], margin: float, spread: float) -> tuple[float, float]:
    """Item by item, as the docstring tells it."""
    harm = no_harm = 1.0
    count, squares, total = 4.0 / spread, 4.0, 0.0
    for index, x in enumerate(d):
        moment = squares / count
        seen = max(index, 1)
        aim = max(margin, total / seen - 1.5 * math.sqrt(moment / seen))
        harm *= 1 + max(-0.9, min(0.9, aim / max(moment, aim**2) * x))
        total += x
        no_harm *= 1 + max(-0.9, min(0.9, margin / (moment + margin**2) * (margin - x)))
        count, squares = count + 1, squares + x * x
    return harm, no_harm


def test_capital_is_what_betting_item_by_item_gives() -> None:
    d = answers(np.random.default_rng(0), (1, 200), 0.3, 0.1)[0]
    found = bet(d, 0.05, 0.1)
    expected = slow_capital(d.tolist(), 0.05, 0.1)
    assert (math.exp(found.harm[-1]), math.exp(found.no_harm[-1])) == pytest.approx(expected)


def test_the_pilot_stakes_nothing_and_tells_the_spread() -> None:
    d = np.random.default_rng(0).normal(size=60)
    found = bet(d, 0.1)
    assert not found.harm[:20].any() and not found.no_harm[:20].any() and found.harm[20] != 0
    stake = 0.1 / np.mean(d[:20] ** 2)
    assert found.harm[20] == pytest.approx(math.log(1 + stake * d[20]))


@pytest.mark.parametrize("planned", [0.01, 0.05, None])
def test_sign_flips_of_real_looking_differences_alarm_at_most_as_stated(planned: float | None) -> None:
    """Whatever the differences, flipping signs makes "no harm" true: at most 5 % may ever reach the bar."""
    rng = np.random.default_rng(1)
    heavy = rng.standard_t(3, size=1500) * 0.2
    for kept in (answers(rng, (1, 1500), 0.03, 0.02)[0], heavy):
        flipped = kept * rng.choice([-1.0, 1.0], size=(400, 1500))
        alarms = (bet(flipped, 0.01, planned).harm.max(axis=-1) >= BAR).mean()
        assert alarms <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("discordant", [0.02, 0.05])
def test_harm_of_the_margin_is_seldom_called_harmless(discordant: float) -> None:
    d = answers(np.random.default_rng(2), (400, 3000), discordant, 0.01)
    assert (bet(d, 0.01, 0.05).no_harm.max(axis=-1) >= BAR).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(("discordant", "harm", "fixed"), [(0.01, 0.005, 4329), (0.03, 0.01, 3267), (0.05, 0.02, 1357)])
def test_power_with_at_most_60_percent_of_the_items_of_mcnemars_test(
    discordant: float, harm: float, fixed: int
) -> None:
    assert (
        exact_mcnemar_power(round(0.97 * fixed), discordant, harm)
        < 0.9
        < exact_mcnemar_power(fixed, discordant, harm) + 0.005
    )
    d = answers(np.random.default_rng(3), (300, 2 * fixed), discordant, harm)
    found = bet(d, harm, discordant)
    worse, none = (
        np.where(c >= BAR, np.arange(2 * fixed), 2 * fixed).min(axis=-1) for c in (found.harm, found.no_harm)
    )
    used = np.minimum(np.minimum(worse, none) + 1, 2 * fixed)
    assert (worse < none).mean() >= 0.9 - 2 * math.sqrt(0.09 / 300)
    assert used.mean() / fixed <= 0.60


def test_a_difference_far_below_the_margin_is_no_harm() -> None:
    d = np.full(200, 1e-6)
    found = bet(d, 0.02)
    assert found.no_harm[-1] >= BAR and found.harm[-1] < 0.1


def test_adjusted_is_the_least_mean_over_every_set() -> None:
    logs = [math.log(x) for x in (0.2, 30.0, 500.0, 3.0)]
    found = adjusted(logs)
    for i, own in enumerate(logs):
        others = [math.exp(x) for j, x in enumerate(logs) if j != i]
        sets = [s for k in range(4) for s in combinations(others, k)]
        assert math.exp(found[i]) == pytest.approx(min((math.exp(own) + sum(s)) / (1 + len(s)) for s in sets))
    assert adjusted([1.0]) == [1.0]


def test_family_wise_alarms_stay_at_the_stated_rate() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(300):
        d = answers(rng, (5, 1500), 0.05, 0.0)
        d[1] = d[0]  # dependent harms
        alarms += max(adjusted(bet(d, 0.01, 0.05).harm.max(axis=-1).tolist())) >= BAR
    assert alarms / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_smallest_difference_is_seen_as_often_as_stated() -> None:
    items, discordant = 4000, 0.05
    least = smallest_difference(items, discordant)
    assert items_for(least, discordant) == pytest.approx(items, abs=1)
    d = answers(np.random.default_rng(6), (300, items), discordant, least)
    seen = (bet(d, least, discordant).harm.max(axis=-1) >= BAR).mean()
    assert seen >= 0.9 - 2 * math.sqrt(0.09 / 300)


def test_more_items_points_at_the_nearer_answer() -> None:
    d = answers(np.random.default_rng(7), (1, 300), 0.05, 0.0)[0]
    found = bet(d, 0.01, 0.05)
    capital = float(found.harm[-1]), float(found.no_harm[-1])
    few = more_items(d, 0.05, capital, (0.05, 0.05))
    assert 0 < few < more_items(d, 0.02, capital, (0.05, 0.05)) <= 10_000_000


def test_confidence_sequence_holds_at_every_look_together() -> None:
    rng, broken = np.random.default_rng(8), 0
    for _ in range(200):
        d = rng.normal(0.3, 1, size=800)
        ends = [confidence_sequence(d[:n]) for n in range(50, 801, 50)]
        broken += any(not low <= 0.3 <= high for low, high in ends)
    assert broken / 200 <= 0.08
    assert confidence_sequence(np.ones(5)) == (-math.inf, math.inf)


def test_margin_and_spread_must_be_above_zero() -> None:
    with pytest.raises(DataError, match="above 0"):
        bet(np.zeros(3), 0.0)
    with pytest.raises(DataError, match="above 0"):
        bet(np.zeros(3), 0.1, 0.0)
