from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean, ratio
from limbeck.measure.stats import Interval, adjust, compare, holm, interval, items_needed, verdict

NATS = ratio("nll", "tokens", better="lower", unit="nats")
ACCURACY = mean("right")


def run(values, prefix: str = "i") -> Scores:
    return Scores.of([f"{prefix}{n}" for n in range(len(values))], right=values)


def normal(seed: int, items: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, spread, items)


class TestInterval:
    def test_of_a_mean_is_near_the_normal_one(self):
        x = normal(0, 400)
        found = interval(run(x), ACCURACY)
        half = 1.96 * x.std() / 20
        assert found.value == pytest.approx(x.mean())
        assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.008)
        assert (found.items, found.seeds, found.level, found.method) == (400, 1, 0.95, "t")

    def test_is_no_narrower_than_students_t_on_either_side(self):
        for x in (normal(1, 9), np.random.default_rng(5).exponential(1, 12)):
            low, high = scipy_stats.t.interval(0.95, len(x) - 1, x.mean(), x.std(ddof=1) / math.sqrt(len(x)))
            found = interval(run(x), ACCURACY)
            assert found.low <= low + 1e-12 and found.high >= high - 1e-12

    def test_widens_with_the_level(self):
        x = run(normal(1, 30))
        narrow, wide = interval(x, ACCURACY, level=0.8), interval(x, ACCURACY, level=0.99)
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high

    def test_of_skewed_items_leans_to_the_long_side(self):
        x = np.random.default_rng(5).exponential(1, 25)
        found, mirrored = interval(run(x), ACCURACY), interval(run(-x), ACCURACY)
        assert found.high - found.value > 1.1 * (found.value - found.low)
        assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))

    def test_one_item_leaves_everything_open(self):
        found = interval(run([0.5]), ACCURACY)
        assert found.value == 0.5 and (found.low, found.high) == (-math.inf, math.inf)
        assert "[-inf, inf], 95 %, 1 item" in found.describe()

    def test_over_seeds_is_of_their_mean_and_wider(self):
        items = normal(2, 200)
        alone = interval(run(items), ACCURACY)
        seeds = interval([run(items + d) for d in (-0.3, 0.0, 0.3)], ACCURACY)
        assert seeds.value == pytest.approx(items.mean()) and seeds.seeds == 3
        of_items, of_seeds = items.var(ddof=1) / 200, 0.3**2 / 3
        df = (of_items + of_seeds) ** 2 / (of_items**2 / 199 + of_seeds**2 / 2)  # Satterthwaite
        half = scipy_stats.t.ppf(0.975, df) * math.sqrt(of_items + of_seeds)
        assert seeds.high - seeds.low > alone.high - alone.low
        assert (seeds.high - seeds.low) / 2 == pytest.approx(half, rel=0.01)

    def test_runs_must_be_of_the_same_items(self):
        with pytest.raises(DataError, match="differ in items"):
            interval([run([1, 2]), run([1, 2], "j")], ACCURACY)
        with pytest.raises(DataError, match="no evaluation"):
            interval([], ACCURACY)
        shuffled = run([1, 2, 3]).select(["i2", "i0", "i1"])
        assert interval([run([1, 2, 3]), shuffled], ACCURACY).value == 2

    def test_says_itself_in_words(self):
        found = Interval(3.2438, 3.1812, 3.3049, 0.95, 100, unit="nats")
        assert found.describe() == "3.24 nats [3.18, 3.30], 95 %, 100 items"
        assert Interval(0.5, 0.5, 0.5, 0.9, 2, 3).describe() == "0.5 [0.5, 0.5], 90 %, 2 items, 3 seeds"

    @pytest.mark.parametrize(("items", "seeds"), [(60, 1), (60, 3), (20, 5)])
    def test_holds_the_truth_as_often_as_it_says(self, items, seeds):
        """Items and seeds each with their own effect: the true mean is 0."""
        random, held = np.random.default_rng(11), 0
        for _ in range(200):
            shared = random.normal(0, 1, items)
            effects = random.normal(0, 0.4, seeds) if seeds > 1 else [0.0]
            runs = [run(shared + e + random.normal(0, 0.3, items)) for e in effects]
            found = interval(runs, ACCURACY)
            held += found.low <= 0 <= found.high
        assert 0.90 <= held / 200 <= 1.0


class TestCompare:
    def test_pairing_sharpens(self):
        base = normal(3, 80)
        a, b = run(base), run(base + normal(4, 80, 0.15, 0.2))
        paired = compare(a, b, ACCURACY)
        apart = compare(a, run(b["right"], "j"), ACCURACY, pairing="none")
        assert paired.difference == pytest.approx(apart.difference)
        assert paired.better == "b" and apart.better is None
        assert (paired.high - paired.low) * 3 < apart.high - apart.low
        assert paired.p < 0.01 < 0.05 < apart.p

    def test_the_difference_is_b_minus_a_of_the_whole_figures(self):
        ids = ["x", "y"]
        a = Scores.of(ids, nll=[6, 1], tokens=[3, 1])
        b = Scores.of(ids, nll=[3, 1], tokens=[3, 1])
        found = compare(a, b, NATS)
        assert (found.a, found.b, found.difference) == (7 / 4, 1.0, -0.75)
        assert found.pairing == "items" and found.seeds == (1, 1) and found.items == 2

    def test_lower_is_better_where_it_is(self):
        a = Scores.of(map(str, range(40)), nll=normal(0, 40, 3), tokens=np.ones(40))
        b = Scores.of(a.ids, nll=a["nll"] - 0.5 + normal(1, 40, 0, 0.1), tokens=np.ones(40))
        assert compare(a, b, NATS).better == "b" and compare(b, a, NATS).better == "a"

    def test_few_items_show_nothing_though_all_agree(self):
        """One in sixteen arrangements of five signs is as far from 0: no five items can be rarer than that."""
        a, b = run(np.zeros(5)), run(np.ones(5))
        found = compare(a, b, ACCURACY)
        assert found.low < found.high == 1 and found.p == 2 / 32 and found.better is None
        text = verdict(found)
        assert text.startswith("no difference shown at 5 items") and "too few items for 95 %" in text
        assert compare(run(np.zeros(8)), run(np.ones(8)), ACCURACY).better == "b"

    def test_seeds_must_agree_too(self):
        items = normal(5, 300)
        a = [run(items), run(items + 0.01), run(items - 0.01)]
        clear = [run(items + 0.5), run(items + 0.52), run(items + 0.48)]
        torn = [run(items + 1.5), run(items + 0.1), run(items - 0.1)]
        assert compare(a, clear, ACCURACY).better == "b"
        assert compare(a, torn, ACCURACY).better is None
        assert compare(a[0], torn[0], ACCURACY).better == "b"  # what one lucky seed would have claimed
        assert compare(a, torn, ACCURACY).seeds == (3, 3)

    def test_paired_seeds_cancel_what_they_share(self):
        items = normal(6, 100)
        drift = (0.6, -0.5, 0.1)
        a = [run(items + d) for d in drift]
        own = normal(7, 100, 0.1, 0.05)
        b = [run(items + d + own + e) for d, e in zip(drift, (0.005, -0.004, 0.0), strict=True)]
        assert compare(a, b, ACCURACY).better is None
        assert compare(a, b, ACCURACY, seeds="paired").better == "b"
        with pytest.raises(DataError, match="3 and 2 seeds cannot be paired"):
            compare(a, b[:2], ACCURACY, seeds="paired")
        assert compare(a, b[:2], ACCURACY).seeds == (3, 2)

    def test_items_that_differ_are_refused_or_intersected(self):
        a, b = run(normal(7, 20)), run(normal(7, 30))
        with pytest.raises(DataError, match="10 only in the second"):
            compare(a, b, ACCURACY)
        shared = compare(a, b, ACCURACY, pairing="shared")
        assert shared.items == 20 and shared.difference == 0
        assert "20 items that both have, 1 seed (over items only)" in verdict(shared)

    def test_one_item(self):
        found = compare(run([1]), run([2]), ACCURACY)
        assert found.better is None and found.p == 1 and not found.equivalence(5).equivalent
        assert verdict(found) == "no difference can be shown at 1 item: B - A is 1"

    def test_false_alarms_are_as_rare_as_stated(self):
        random, alarms = np.random.default_rng(13), 0
        for trial in range(200):
            base = random.normal(0, 1, 40)
            a, b = ([run(base + random.normal(0, 0.3) + random.normal(0, 0.3, 40)) for _ in range(3)] for _ in "ab")
            alarms += compare(a, b, ACCURACY, resamples=400, seed=trial).better is not None
        assert alarms / 200 <= 0.08

    def test_json_is_plain(self):
        import json

        found = compare(run(normal(1, 20)), run(normal(2, 20)), ACCURACY)
        values = json.loads(json.dumps(found.to_json()))
        assert values["statistic"] == "right" and values["seeds"] == [1, 1]
        assert values["difference"] == found.b - found.a


class TestEquivalence:
    def test_is_the_interval_of_the_two_one_sided_tests(self):
        x = normal(8, 400)
        found = compare(run(x), run(x + normal(9, 400, 0.01, 0.1)), ACCURACY, resamples=8000)
        test = found.equivalence(0.05)
        assert test.equivalent and -0.05 < test.low < test.high < 0.05
        difference = normal(9, 400, 0.01, 0.1)
        one_sided = scipy_stats.t.interval(0.90, 399, difference.mean(), difference.std(ddof=1) / 20)
        assert (test.low, test.high) == pytest.approx(one_sided, abs=1.5e-3)
        assert not found.equivalence(0.005).equivalent

    def test_words(self):
        x = normal(8, 400)
        found = compare(run(x), run(x + normal(9, 400, 0.0, 0.1)), ACCURACY)
        names = ("base", "LoRA")
        assert verdict(found, names, margin=0.05).startswith("equivalent within 0.05 at 400 items: [")
        assert verdict(found, names, margin=0.001).startswith("no difference shown at 400 items: LoRA - base")


class TestWords:
    def test_better(self):
        ids = [str(n) for n in range(100)]
        a = Scores.of(ids, nll=normal(1, 100, 3, 0.2), tokens=np.ones(100))
        b = Scores.of(ids, nll=a["nll"] + normal(2, 100, 0.12, 0.3), tokens=np.ones(100))
        text = verdict(compare([a] * 3, [b] * 3, NATS), ("with", "without"))
        assert text.startswith("with is better by 0.1") and "95 %, 100 items, 3 seeds, p = " in text
        low, high = text.split("[")[1].split("]")[0].split(", ")
        assert 0 < float(low) < float(high)
        assert verdict(compare(b, a, NATS)).startswith("B is better by")

    def test_twelve_items(self):
        found = compare(run(normal(1, 12)), run(normal(2, 12)), ACCURACY)
        text = verdict(found, ("plain", "distilled"))
        assert text.startswith("no difference shown at 12 items: distilled - plain is ") and "p = " in text

    def test_unpaired_and_seeds_are_said(self):
        a, b = run(normal(1, 12)), run(normal(2, 15), "j")
        assert "12 items, unpaired, 2 and 1 seeds (of the single run over items only)" in verdict(
            compare([a, a], b, ACCURACY, pairing="none")
        )


def test_items_needed_give_the_power():
    """As many items as it asks for show the difference about four times in five."""
    pilot = compare(run(normal(1, 200)), run(normal(1, 200) + normal(2, 200, 0.1, 0.5)), ACCURACY)
    n = items_needed(pilot, 0.2)
    assert n == pytest.approx((1.96 + 0.8416) ** 2 * 0.25 / 0.04, rel=0.15)
    shown = 0
    for trial in range(150):
        random = np.random.default_rng(1000 + trial)
        base = random.normal(0, 1, n)
        shown += compare(run(base), run(base + random.normal(0.2, 0.5, n)), ACCURACY, resamples=400).better == "b"
    assert 0.65 < shown / 150 < 0.92
    assert items_needed(pilot) == items_needed(pilot, pilot.difference)
    assert items_needed(pilot, 0.2, power=0.95) > n and items_needed(pilot, 50) == 2
    for bad in (lambda: items_needed(pilot, 0.0), lambda: items_needed(compare(run([1]), run([2]), ACCURACY))):
        with pytest.raises(DataError, match="other than 0"):
            bad()


def test_holm_against_the_textbook():
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.005, "b": 0.04})
    assert adjusted == pytest.approx({"c": 0.06, "a": 0.03, "d": 0.02, "b": 0.06})
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert holm({"x": 0.6, "y": 0.9}) == {"x": 1.0, "y": 1.0} and holm({}) == {}


def test_an_interval_stays_within_what_the_figure_can_be() -> None:
    from limbeck.measure.statistic import mean

    rng = np.random.default_rng(0)
    runs = [Scores.of([str(i) for i in range(40)], ended=(rng.random(40) < p).astype(float)) for p in (0.9, 1.0, 0.98)]
    free, bounded = interval(runs, mean("ended")), interval(runs, mean("ended", bounds=(0, 1)))
    assert free.high > 1  # of one run it is a share, of the mean of three it is not
    assert (bounded.low, bounded.high, bounded.value) == (free.low, 1.0, free.value)


class TestAdjust:
    def found(self):
        items = normal(1, 40)
        return {name: compare(run(items), run(items + normal(s, 40, m, 0.5)), ACCURACY)
                for name, s, m in (("first", 2, 0.18), ("second", 3, 0.17), ("third", 4, 0.0))}  # fmt: skip

    def test_the_verdict_comes_from_the_adjusted_p(self):
        found = self.found()
        judged = adjust(found)
        assert {n: c.p_adjusted for n, c in judged.items()} == holm({n: c.p for n, c in found.items()})
        lost = [n for n, c in found.items() if c.shown and not judged[n].shown]
        assert lost, "the case must hold a difference that Holm takes away"
        for name, c in judged.items():
            text = verdict(c)
            assert text.startswith("no difference shown") == (c.p_adjusted > 0.05) == (c.better is None)
            assert f"p = {c.p_adjusted:.2g} after Holm over 3" in text
            assert c.to_json()["better"] == c.better and c.to_json()["p_holm"] == c.p_adjusted
            assert c.p == found[name].p

    def test_a_figure_named_beforehand_is_judged_alone(self):
        found = self.found()
        judged = adjust(found, alone="first")
        assert judged["first"].p_adjusted == found["first"].p and judged["first"].family == 1
        assert "Holm" not in verdict(judged["first"])
        assert judged["second"].p_adjusted == min(1, 2 * found["second"].p) and judged["second"].family == 2
