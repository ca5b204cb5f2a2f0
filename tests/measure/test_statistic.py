from __future__ import annotations

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean, ratio

SCORES = Scores.of(["a", "b"], nll=[6.0, 1.0], tokens=[3, 1])


def test_mean_and_ratio_differ():
    assert mean("nll").value(SCORES) == 3.5
    nats = ratio("nll", "tokens", name="nats per token", better="lower", unit="nats")
    assert nats.value(SCORES) == 7 / 4  # not the mean of 2 and 1
    assert (nats.name, nats.better, nats.unit) == ("nats per token", "lower", "nats")
    assert ratio("nll", "tokens").name == "nll/tokens"


def test_figures_are_vectorised_and_need_no_number_of_items():
    nats = ratio("nll", "tokens")
    sums = np.array([[[6.0, 3.0], [7.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]])
    assert nats.of_sums(sums).tolist() == [[2.0, 1.75], [1.0, 0.0]]
    assert np.allclose(nats.of_sums(sums / 2), nats.of_sums(sums))


def test_table_has_one_row_an_item():
    assert mean("nll").table(SCORES).tolist() == [[6.0, 1.0], [1.0, 1.0]]
    with pytest.raises(DataError, match="no score 'chrf'"):
        mean("chrf").value(SCORES)
