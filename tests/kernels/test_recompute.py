"""What is computed again in the backward: the same gradients to the bit, from less memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.kernels.recompute import recomputed
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.techniques.lora import LoRA


def test_a_value_is_not_kept_and_its_gradients_are_the_same():
    x, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    calls: list[int] = []

    def value() -> Tensor:
        calls.append(1)
        return x.tanh()

    def lean() -> Tensor:
        y = value()
        with recomputed(y, value):
            return torch.nn.functional.linear(y, weight).square().sum()

    plain = torch.nn.functional.linear(x.tanh(), weight).square().sum()
    wanted = torch.autograd.grad(plain, (x, weight))
    out = lean()
    assert len(calls) == 1
    got = torch.autograd.grad(out, (x, weight))
    assert len(calls) == 2  # once more, for the weight's gradient
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_nothing_holds_the_value():
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(3, 8, requires_grad=True)
    y = x * 2  # keeps nothing of its result
    watched = weakref.ref(y)
    with recomputed(y, lambda: x * 2):
        out = y @ weight.t()
    del y
    assert watched() is None
    out.sum().backward()
    assert torch.equal(weight.grad, (x * 2).detach().sum(0).expand(3, 8))


@pytest.mark.parametrize("value", [torch.randn(8, 4).t(), torch.empty(0, 8)])
def test_what_is_not_contiguous_or_empty_is_kept_as_ever(value: Tensor):
    def never() -> Tensor:
        raise AssertionError("computed again")

    weight = torch.randn(8, 3, requires_grad=True)
    with recomputed(value, never):
        out = value @ weight
    out.sum().backward()
    assert weight.grad is not None


CONFIG = DecoderConfig(vocab_size=61, hidden_size=16, layers=2, heads=2, context=32)


def gradients(model: Decoder, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    terms = NextToken()(model, batch, {"nll": 1})
    sum(t.sum for t in terms.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_computes_its_norms_again_bit_for_bit(
    adapters: bool, norm: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{**CONFIG.model_dump(), "norm": norm})).to(dtype)
    if adapters:
        model = LoRA(rank=2).apply(model)
    batch = Batch.of_ids(torch.randint(0, 61, (3, 20)))
    counted: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            forward = module.forward
            monkeypatch.setattr(module, "forward", lambda x, f=forward: counted.append(1) or f(x))
    lean = gradients(model.train(), batch)
    assert len(counted) > 5  # two layers of two norms, one at the end, and those of the backward
    monkeypatch.setattr("limbeck.model.decoder.hooked", lambda module: True)  # as if somebody watched every norm
    counted.clear()
    whole = gradients(model, batch)
    assert len(counted) == 5
    assert lean.keys() == whole.keys() and all(torch.equal(lean[n], whole[n]) for n in lean)


def test_checkpointed_blocks_keep_only_their_input():
    torch.manual_seed(0)
    model = Decoder(CONFIG).train()
    batch = Batch.of_ids(torch.randint(0, 61, (3, 20)))
    plain = gradients(model, batch)
    model.checkpointing = True
    again = gradients(model, batch)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
