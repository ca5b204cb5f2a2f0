from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, t

from limbeck.study.price import predict


def test_the_interval_is_that_of_a_new_observation() -> None:
    """Against the textbook formula with scipy's own fit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = 2 * x + rng.normal(size=12)
    found = predict(x.tolist(), y.tolist(), 0.7)
    fit = linregress(x, y)
    rest = y - fit.intercept - fit.slope * x
    s = np.sqrt((rest**2).sum() / 10)
    half = t.ppf(0.95, 10) * s * np.sqrt(1 + 1 / 12 + (0.7 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    assert found is not None
    assert (found.value, found.high - found.value) == pytest.approx((fit.intercept + fit.slope * 0.7, half))


def test_90_percent_intervals_cover_85_to_95_percent() -> None:
    rng, held = np.random.default_rng(1), []
    for _ in range(600):
        x = rng.normal(size=9)
        y = 1 + 0.5 * x + rng.normal(size=9) * 0.3
        price = predict(x[:-1].tolist(), y[:-1].tolist(), float(x[-1]))
        assert price is not None
        held.append(price.low <= y[-1] <= price.high)
    assert 0.85 <= np.mean(held) <= 0.95


def test_too_few_arms_or_equal_probes_give_no_price() -> None:
    assert predict([1, 2, 3, 4], [1, 2, 3, 4], 5) is None
    assert predict([1] * 6, list(range(6)), 1) is None
    assert predict([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], float("nan")) is None
