from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from limbeck.data import batch
from limbeck.losses.likelihood import IGNORE, squared_log_partition, token_nll, wide


def test_ignore_is_the_batch_s() -> None:
    assert IGNORE == batch.IGNORE


def test_token_nll_is_the_log_softmax_at_the_label() -> None:
    logits = torch.randn(7, 11, dtype=torch.float64) * 3
    labels = torch.tensor([0, 10, IGNORE, 3, 4, IGNORE, 5])
    want = [
        0.0 if y == IGNORE else float(logsumexp(row.numpy()) - row[y])
        for row, y in zip(logits, labels.tolist(), strict=True)
    ]
    np.testing.assert_allclose(token_nll(logits, labels), want, rtol=1e-12, atol=0)


def test_uniform_logits_cost_log_v() -> None:
    assert token_nll(torch.zeros(1, 50), torch.tensor([7])).item() == pytest.approx(math.log(50))


def test_half_precision_is_widened_before_the_softmax() -> None:
    logits = torch.randn(3, 300).bfloat16()
    labels = torch.tensor([1, 2, 3])
    got = token_nll(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_nll(logits.double(), labels).float(), rtol=1e-6, atol=1e-6)


def test_label_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(IndexError):
        token_nll(torch.zeros(1, 5), torch.tensor([5]))


def test_squared_log_partition() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    want = logsumexp(logits.numpy(), axis=1) ** 2
    np.testing.assert_allclose(squared_log_partition(logits), want, rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_wide(given: torch.dtype, wanted: torch.dtype) -> None:
    assert wide(given) == wanted
