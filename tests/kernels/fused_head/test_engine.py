from __future__ import annotations

import pytest
import torch

from limbeck.kernels.fused_head import engine
from tests.reference import losses as slow
from tests.reference.fused import fused_nll


@pytest.mark.parametrize(
    ("rows", "row_bytes", "budget", "wanted"),
    [(10, 1, 100, 10), (10, 1, 4, 4), (10, 1, 5, 5), (1024, 50257 * 2, 64 << 20, 512), (3, 100, 1, 1), (0, 8, 64, 1)],
)
def test_chunks_are_nearly_equal_and_within_the_budget(rows: int, row_bytes: int, budget: int, wanted: int) -> None:
    assert engine.chunk_size(rows, row_bytes, budget) == wanted


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_a_bf16_weight_gradient_is_summed_wide_and_rounded_at_the_end(chunks: int, weight_dtype: torch.dtype) -> None:
    """However many chunks, the error stays that of single roundings."""
    hidden = torch.randn(400, 16).bfloat16()
    weight = torch.randn(60, 16).bfloat16().to(weight_dtype).requires_grad_()
    labels = torch.randint(60, (400,))
    loss = fused_nll(hidden, weight, labels, chunk_rows=400 // chunks)
    (got,) = torch.autograd.grad(loss, weight)
    full = weight.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(slow.plain_nll(hidden.double(), full, labels), full)
    assert got.dtype == weight_dtype
    assert slow.relative(got, want) < 6e-3


def test_rows_longer_than_a_tile_and_tiles_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(9, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    labels = torch.randint(30, (9,))
    want = slow.plain_nll(hidden, weight, labels)
    for elements in (1, 70, 10**6):
        monkeypatch.setattr(engine, "_TILE_ELEMENTS", elements)
        assert slow.relative(fused_nll(hidden, weight, labels, chunk_rows=4), want) < 1e-12


@pytest.mark.parametrize(("narrow", "wanted"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
])  # fmt: skip
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("vocabulary", [211, 128, 17])
def test_the_heads_gradient_is_summed_block_by_block(
    vocabulary: int, chunks: int, narrow: torch.dtype, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_TILE_ELEMENTS", 5 * 64)  # blocks of 64 rows, then what is left
    rows, width = 6, 5
    grad, hidden = (torch.randn(rows, n, dtype=torch.float64).to(narrow) for n in (vocabulary, width))
    held = engine._WeightGradient(torch.empty(vocabulary, width, dtype=narrow), wanted, chunks)
    for g, h in zip(grad.chunk(chunks), hidden.chunk(chunks), strict=True):
        held.add(g, h)
    exact = grad.double().t() @ hidden.double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[narrow]
    assert held.result().dtype == wanted
    torch.testing.assert_close(held.result().double(), exact, rtol=tolerance, atol=tolerance)
