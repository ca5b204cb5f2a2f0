"""Attention a document at a time equals attention under a dense mask, in values and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.kernels import attention
from limbeck.kernels.attention import Span, document_attention, document_spans

DOCUMENTS = torch.tensor([[1] * 150 + [2] * 7 + [0] * 3, [0] * 20 + [1] * 139 + [2], [0] * 160])


def inputs(heads: int, kv: int, dtype: torch.dtype, b: int = 3, t: int = 160, d: int = 16) -> list[Tensor]:
    """q, k, v (B, H, T, D) as a model lays them out, views of one projection."""
    joined = torch.randn(b, t, (heads + 2 * kv) * d, dtype=torch.float64).to(dtype)
    parts = joined.split([heads * d, kv * d, kv * d], dim=-1)
    return [x.view(b, t, -1, d).transpose(1, 2).detach().requires_grad_() for x in parts]


def reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, scale: float | None = None) -> Tensor:
    """Every score in full, by its definition; 0 on padding."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    t = q.shape[2]
    seen = (documents[:, :, None] == documents[:, None, :]) & torch.ones(t, t, dtype=torch.bool).tril()
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    read = scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1) @ v
    return read * (documents > 0)[:, None, :, None]


def pull(f, xs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Value and gradients of ``f`` for a weighted sum of what it returns."""
    y = f(*xs)
    return [y, *torch.autograd.grad((y * weight).sum(), xs)]


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_packed_documents(heads: int, kv: int, dtype: torch.dtype, tolerance: float, scale: float | None) -> None:
    xs = inputs(heads, kv, dtype)
    weight = torch.randn(3, heads, 160, 16, dtype=dtype)
    ours = pull(lambda q, k, v: document_attention(q, k, v, document_spans(DOCUMENTS), scale), xs, weight)
    slow = pull(lambda q, k, v: reference(q, k, v, DOCUMENTS, scale), xs, weight)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("most", [1, 1 << 22])
def test_whole_rows_in_groups(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SCORE_ELEMENTS", most)
    monkeypatch.setattr(attention, "_BLOCK", 16)
    xs = inputs(2, 2, torch.float64, t=37)
    weight = torch.randn(3, 2, 37, 16, dtype=torch.float64)
    ours = pull(lambda q, k, v: document_attention(q, k, v, [Span(0, 3, 0, 37)]), xs, weight)
    slow = pull(lambda q, k, v: reference(q, k, v, torch.ones(3, 37)), xs, weight)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_bf16_is_as_near_as_rounding() -> None:
    xs = inputs(4, 2, torch.bfloat16, b=2, t=300, d=64)
    exact = [x.detach().double().requires_grad_() for x in xs]
    weight = torch.randn(2, 4, 300, 64).bfloat16()
    documents = torch.cat((torch.full((2, 140), 1), torch.full((2, 160), 2)), dim=1)
    ours = pull(lambda q, k, v: document_attention(q, k, v, document_spans(documents)), xs, weight)
    slow = pull(lambda q, k, v: reference(q, k, v, documents), exact, weight.double())
    for a, b in zip(ours, slow, strict=True):
        # half a unit of the last place of bf16 is 2e-3, met thrice
        assert float(((a - b).norm() / b.norm()).detach()) < 6e-3


def test_only_what_is_asked_for_is_kept() -> None:
    q, k, v = inputs(2, 2, torch.float32)
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        document_attention(q, k, v, document_spans(DOCUMENTS))
    assert set(kept) <= {x.untyped_storage().data_ptr() for x in (q, k, v)}


def test_spans() -> None:
    assert document_spans(torch.tensor([[1, 1, 2, 0, 0], [0, 3, 3, 3, 1], [0, 0, 0, 0, 0]])) == (
        Span(0, 1, 0, 2), Span(0, 1, 2, 3), Span(1, 2, 1, 4), Span(1, 2, 4, 5),
    )  # fmt: skip
