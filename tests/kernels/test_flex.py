"""FlexAttention under a mask of blocks equals attention under the dense mask; it is taken on a GPU alone.

On a CPU torch has its forward only, so gradients are compared where a GPU is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.kernels.flex import block_mask, flex_attend
from limbeck.model import attention
from limbeck.model.attention import Attention, AttentionContext, attend
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern, Causal, Sliding

PATTERNS = (Causal(), Sliding(window=5), Sliding(window=40, sinks=3))
ROWS = {
    "packed": torch.tensor([[1] * 70 + [2] * 60 + [0] * 10, [1] * 140]),
    "padded left": torch.tensor([[0] * 30 + [1] * 110, [0] * 139 + [1]]),
    "several blocks": torch.tensor([[1] * 129 + [2] * 171]),
}


def view_of(documents: Tensor) -> AttentionContext:
    batch = replace(Batch.of_ids(torch.zeros_like(documents)), document_ids=documents.int(), plain=False)
    return AttentionContext(batch.positions(), batch.document_ids, batch.plain)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("heads", "kv"), [(2, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_values_are_those_of_the_dense_mask(pattern: AnyPattern, rows: str, heads: int, kv: int) -> None:
    view = view_of(ROWS[rows])
    b, t = view.documents.shape
    xs = [torch.randn(b, n, t, 16) for n in (heads, kv, kv)]
    mask = block_mask(view.documents, view.positions, pattern.allows)
    ours, dense = flex_attend(*xs, mask, 0.3), attend(*xs, view.dense_mask(pattern), scale=0.3)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


class _OnCuda:
    """What is asked of a tensor on a GPU before anything is computed."""

    device = torch.device("cuda")


def test_it_is_chosen_on_a_gpu_where_a_mask_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AnyPattern] = []
    monkeypatch.setattr(attention, "block_mask", lambda d, p, allows: made.append(allows) or "blocks")
    packed, plain = view_of(ROWS["packed"]), AttentionContext(torch.arange(140)[None], torch.ones(1, 140), True)
    assert packed.blocks(Causal()) is None  # a CPU
    for view in (packed, plain):
        view.documents = _OnCuda()
    assert packed.blocks(Causal()) == packed.blocks(Causal()) == "blocks" and len(made) == 1  # once a forward
    assert plain.blocks(Causal()) is None and plain.blocks(Sliding(window=200)) is None
    assert plain.blocks(Sliding(window=5)) == "blocks"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_a_layer_takes_it_but_with_dropout(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Attention(
        DecoderConfig(vocab_size=9, hidden_size=32, layers=1, heads=2, context=200, dropout=dropout), 0
    ).train()
    view, x = view_of(ROWS["packed"]), torch.randn(2, 140, 32)
    monkeypatch.setattr(AttentionContext, "spans", lambda *_: None)
    with torch.no_grad():
        plain = layer(x, view)
    mask = block_mask(view.documents, view.positions, Causal().allows)
    monkeypatch.setattr(AttentionContext, "blocks", lambda *_: mask)
    called: list[int] = []
    monkeypatch.setattr(attention, "flex_attend", lambda *a: called.append(1) or flex_attend(*a))
    with torch.no_grad():
        flexible = layer(x, view)
    assert bool(called) == (dropout == 0)
    if called:
        torch.testing.assert_close(flexible, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float32), (32, torch.float64)])
def test_a_layer_its_kernels_cannot_serve_takes_the_mask(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Attention(DecoderConfig(vocab_size=9, hidden_size=width, layers=1, heads=2, context=200), 0).to(dtype)
    view, x = view_of(ROWS["packed"]), torch.randn(2, 140, width, dtype=dtype)
    monkeypatch.setattr(AttentionContext, "spans", lambda *_: None)
    plain = layer(x, view)
    monkeypatch.setattr(AttentionContext, "blocks", lambda *_: pytest.fail("no blocks for these"))
    assert torch.equal(layer(x, view), plain)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("rows", ROWS)
def test_compiled_on_a_gpu(pattern: AnyPattern, rows: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    view = view_of(ROWS[rows])
    b, t = view.documents.shape
    xs = [torch.randn(b, n, t, 64, device="cuda", requires_grad=True) for n in (4, 2, 2)]
    mask = block_mask(view.documents.cuda(), view.positions.cuda(), pattern.allows)
    ours, dense = flex_attend(*xs, mask), attend(*xs, view.dense_mask(pattern).cuda())
    torch.testing.assert_close(ours, dense, rtol=2e-3, atol=2e-3)  # TF32 products
    one, two = (torch.autograd.grad(y.square().sum(), xs) for y in (ours, dense))
    for a, c in zip(one, two, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-2, atol=1e-2)
