from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from limbeck.measure import resample
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean, ratio


def table(seed: int, n: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.gamma(2.0, 1.0, n), random.integers(1, 9, n).astype(float)], axis=1)


RATIO = ratio("a", "b")


def test_replicates_are_figures_of_sets_drawn_with_replacement(monkeypatch):
    data = table(0, 7)
    monkeypatch.setattr(resample, "_CELLS", 7 * 3)  # chunks of three
    found = resample.item_replicates([data, 2 * data], RATIO.of_sums, 10, np.random.default_rng(3))
    assert found.shape == (10, 2)
    random, expected = np.random.default_rng(3), []
    for rows in (3, 3, 3, 1):
        for drawn in random.integers(7, size=(rows, 7)):
            expected.append(data[drawn, 0].sum() / data[drawn, 1].sum())
    assert np.allclose(found[:, 0], expected, atol=1e-12) and np.allclose(found[:, 1], expected, atol=1e-12)


def test_exact_sign_flips_walk_every_swap():
    a, b = table(4, 6), table(5, 6)
    observed = abs(b[:, 0].sum() / b[:, 1].sum() - a[:, 0].sum() / a[:, 1].sum())
    as_far = 0
    for swap in product([False, True], repeat=6):
        keep = ~np.array(swap)[:, None]
        x, y = np.where(keep, a, b), np.where(keep, b, a)
        difference = abs(y[:, 0].sum() / y[:, 1].sum() - x[:, 0].sum() / x[:, 1].sum())
        as_far += difference >= observed - 1e-12
    assert resample.flip_labels(a, b, RATIO.of_sums, 64, np.random.default_rng(0)) == as_far / 64


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.6])
def test_permutation_tests_agree_with_scipy(shift):
    random = np.random.default_rng(7)
    a = random.normal(0, 1, 60)
    b = a + random.normal(shift, 1, 60)
    one = mean("x")
    ids = list(map(str, range(60)))
    ta, tb = one.table(Scores.of(ids, x=a)), one.table(Scores.of(ids, x=b))
    for ours, kind in ((resample.flip_labels, "samples"), (resample.shuffle_labels, "independent")):
        p = ours(ta, tb, one.of_sums, 8000, np.random.default_rng(0))
        theirs = scipy_stats.permutation_test(
            (a, b), lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis), permutation_type=kind, vectorized=True,
            n_resamples=8000, rng=np.random.default_rng(1),
        ).pvalue  # fmt: skip
        assert p == pytest.approx(theirs, abs=0.025)
        assert p > 0


def test_no_difference_at_all_has_p_one():
    same = table(8, 30)
    for test in (resample.flip_labels, resample.shuffle_labels):
        assert test(same, same, RATIO.of_sums, 200, np.random.default_rng(0)) == 1
