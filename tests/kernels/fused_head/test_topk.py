from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limbeck.kernels.fused_head.divergence import Dense
from limbeck.kernels.fused_head.topk import top_k
from tests.reference import losses as slow


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [17, 20])
def test_top_and_tail_equal_the_whole_softmax(temperature: float, rows: int) -> None:
    head = nn.Linear(5, 20, dtype=torch.float64)
    hidden = torch.randn(2, 7, 5, dtype=torch.float64)
    log_probs, ids, tail = top_k(Dense(hidden, head), 4, temperature, rows)
    want, want_ids = slow.top_k(head(hidden).flatten(0, 1)[:, :rows].detach(), 4, temperature)
    torch.testing.assert_close(log_probs, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(tail.exp(), 1 - want.exp().sum(1), rtol=1e-10, atol=1e-12)


def test_all_tokens_leave_no_tail() -> None:
    log_probs, _, tail = top_k(Dense(torch.randn(3, 5), nn.Linear(5, 6)), 6, 1.0, 6)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3))
    assert (tail == -math.inf).all()


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match="has 6 vocabulary rows, fewer than the 8"):
        top_k(Dense(torch.randn(3, 5), nn.Linear(5, 6)), 2, 1.0, 8)
