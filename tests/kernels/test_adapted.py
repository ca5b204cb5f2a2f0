"""A frozen layer and its adapter as one operation equal the formula, and serve only where nobody could tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.kernels.adapted import adapted_linear
from limbeck.techniques import lora_layer
from limbeck.techniques.lora_layer import AdapterGroup, LoRALinear

SMALL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (7,), (0,), ()])
def test_values_and_gradients_are_those_of_the_formula(
    dtype: torch.dtype, biased: bool, of_input: bool, shape: tuple[int, ...]
) -> None:
    x, weight, a, b = (torch.randn(*s).to(dtype) for s in ((*shape, 12), (20, 12), (3, 12), (20, 3)))
    bias = torch.randn(20).to(dtype) if biased else None
    leaves = [x.requires_grad_(of_input), a.requires_grad_(), b.requires_grad_()]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
    got = adapted_linear(x, weight, bias, a, b)
    wanted = wide[0] @ weight.double().T + (0 if bias is None else bias.double()) + wide[0] @ wide[1].T @ wide[2].T
    assert got.dtype == dtype and got.shape == wanted.shape
    upstream = torch.randn(wanted.shape)
    got.backward(upstream.to(dtype))
    wanted.backward(upstream.to(dtype).double())
    for ours, exact in zip((got, *(t.grad for t in leaves)), (wanted, *(t.grad for t in wide)), strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            scale = float(exact.detach().abs().max()) if exact.numel() else 0.0
            torch.testing.assert_close(ours.double(), exact, rtol=0, atol=SMALL[dtype] * (scale + 1e-30))


def adapted(dropout: float = 0.0) -> LoRALinear:
    base = nn.Linear(6, 8).requires_grad_(False)
    groups = [AdapterGroup("x", (slice(0, 4),), 2, 1.5), AdapterGroup("y", (slice(4, 8),), 3, 0.5)]
    layer = LoRALinear(base, groups, parts={"x": 4, "y": 4}, dropout=dropout)
    for p in (*layer.lora_a.values(), *layer.lora_b.values()):
        nn.init.normal_(p)
    return layer


def test_it_serves_a_plain_frozen_base(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(lora_layer, "adapted_linear", lambda *a: calls.append(1) or adapted_linear(*a))
    x = torch.randn(3, 6)
    layer = adapted()
    served = layer(x)
    assert len(calls) == 1
    seen = []
    handle = layer.base.register_forward_hook(lambda *a: seen.append(1))
    torch.testing.assert_close(layer(x), served, rtol=1e-5, atol=1e-6)  # apart, the base is called
    assert len(calls) == 1 and seen == [1]
    handle.remove()
    for name in ("weight", "bias"):
        getattr(layer.base, name).requires_grad_(True)
        layer(x).sum().backward()
        assert getattr(layer.base, name).grad is not None
        getattr(layer.base, name).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.on = False
    assert torch.equal(layer(x), layer.base(x))
    assert len(calls) == 1
    dropped = adapted(dropout=0.5)
    dropped(x)
    assert len(calls) == 1
    dropped.eval()(x)
    assert len(calls) == 2
