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
@pytest.mark.parametrize("compiled", [True, False])
def test_packed_documents(
    heads: int, kv: int, dtype: torch.dtype, tolerance: float, scale: float | None, compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not compiled:
        monkeypatch.setattr(attention.native, "load", lambda: None)
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


@pytest.mark.parametrize("compiled", [True, False])
def test_only_what_is_asked_for_is_kept(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        need_compiled(torch.float32)
    else:
        monkeypatch.setattr(attention.native, "load", lambda: None)
    q, k, v = inputs(2, 2, torch.float32)
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        document_attention(q, k, v, document_spans(DOCUMENTS))
    others = set(kept) - {x.untyped_storage().data_ptr() for x in (q, k, v)}
    assert len(others) == (2 if compiled else 0)  # the result and its log-sums


def test_spans() -> None:
    assert document_spans(torch.tensor([[1, 1, 2, 0, 0], [0, 3, 3, 3, 1], [0, 0, 0, 0, 0]])) == (
        Span(0, 1, 0, 2), Span(0, 1, 2, 3), Span(1, 2, 1, 4), Span(1, 2, 4, 5),
    )  # fmt: skip


def need_compiled(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 2, 2, dtype=dtype)
    if attention._Compiled.of(x, x, x, [Span(0, 1, 0, 2)], 1.0) is None:
        pytest.skip(f"there is no compiled pass for {dtype} here")


NUMBERS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


LENGTHS = ([1], [2, 23], [24, 25, 0, 47], [48, 49], [64, 65], [66, 130], [96, 200])


def rows_of(lengths: list[int], t: int) -> Tensor:
    """One row of documents of ``lengths`` from column 0 on, 0 for the rest."""
    row = torch.zeros(t, dtype=torch.int64)
    at = 0
    for i, n in enumerate(lengths):
        row[at : at + n] = i + 1
        at += n
    return row


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "kv", "d"), [(2, 2, 64), (4, 2, 8), (3, 1, 20), (2, 1, 80), (1, 1, 128), (2, 2, 2)])
@pytest.mark.parametrize("compiled", [True, False])
@NUMBERS
def test_every_shape(
    lengths: list[int], heads: int, kv: int, d: int, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(attention.native, "load", lambda: None)
    else:
        need_compiled(dtype)
    t = sum(lengths) + 3
    documents = torch.stack((rows_of(lengths, t), rows_of(lengths[::-1], t).flip(0)))
    xs = inputs(heads, kv, dtype, b=2, t=t, d=d)
    exact = [x.detach().double().requires_grad_() for x in xs]
    weight = torch.randn(2, heads, t, d).to(dtype)
    ours = pull(lambda q, k, v: document_attention(q, k, v, document_spans(documents)), xs, weight)
    slow = pull(lambda q, k, v: reference(q, k, v, documents), exact, weight.double())
    for a, b in zip(ours, slow, strict=True):
        scale = float(b.detach().norm()) or float(slow[0].detach().norm())  # one token alone: no gradient of its query
        assert float((a - b).detach().norm()) < {torch.bfloat16: 1.2e-2, torch.float32: 2e-6}[dtype] * scale
    hidden = (documents == 0)[:, None, :, None]
    for a in ours:
        assert not a.detach().masked_select(hidden).any()


@NUMBERS
def test_the_compiled_passes_do_not_depend_on_threads_or_groups(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_compiled(dtype)
    documents = torch.stack((rows_of([100, 60], 160), rows_of([160], 160), rows_of([3, 80, 77], 160)))
    spans, threads = document_spans(documents), torch.get_num_threads()
    xs = inputs(4, 2, dtype)
    weight = torch.randn(3, 4, 160, 16).to(dtype)
    whole = pull(lambda q, k, v: document_attention(q, k, v, spans), xs, weight)
    monkeypatch.setattr(attention, "_LAID_OUT", 1)  # a document at a time
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            again = pull(lambda q, k, v: document_attention(q, k, v, spans), xs, weight)
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@NUMBERS
def test_the_compiled_passes_take_any_strides(dtype: torch.dtype) -> None:
    xs = [x.detach() for x in inputs(2, 2, dtype, t=70)]
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in xs]
    plain = [x.contiguous().requires_grad_() for x in xs]
    weight = torch.randn(3, 2, 16, 70).to(dtype).transpose(2, 3)
    one = pull(lambda q, k, v: document_attention(q, k, v, [Span(0, 3, 0, 70)]), turned, weight)
    two = pull(lambda q, k, v: document_attention(q, k, v, [Span(0, 3, 0, 70)]), plain, weight)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@NUMBERS
def test_what_is_no_number_stays_none_where_it_is_seen(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in inputs(2, 2, dtype, b=1, t=100))
    k[0, 0, 40] = float("nan")
    y = document_attention(q, k, v, [Span(0, 1, 0, 100)])
    assert y[0, 0, 40:].isnan().all() and y[0, 0, :40].isfinite().all() and y[0, 1].isfinite().all()


@NUMBERS
def test_without_gradients_no_sums_are_made(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiled(dtype)
    seen: list[Tensor | None] = []
    forward = attention._Compiled.forward
    monkeypatch.setattr(
        attention._Compiled, "forward", lambda self, out, sums: seen.append(sums) or forward(self, out, sums)
    )
    q, k, v = inputs(2, 2, dtype, b=1, t=20)
    document_attention(q.detach(), k.detach(), v.detach(), [Span(0, 1, 0, 20)])
    document_attention(q, k, v, [Span(0, 1, 0, 20)])
    assert seen[0] is None and seen[1] is not None and seen[1].shape == (1, 2, 20)
