"""GELU in blocks equals torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.kernels import activation
from limbeck.kernels.activation import activate, activated_linear, gelu_tanh


@pytest.mark.parametrize("shape", [(3, 70, 400), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_and_gradients_are_torchs(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "_BLOCK", 1 << 14)
    x = (4 * torch.randn(shape)).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, -60.0, 60.0, 1e-20])
    ours, torchs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = gelu_tanh(ours), F.gelu(torchs, approximate="tanh")
    exact = F.gelu(x.double(), approximate="tanh")
    tolerance = {torch.bfloat16: 2**-8, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(a.double(), exact, rtol=tolerance, atol=1e-6)
    weight = torch.randn_like(x)
    a.backward(weight)
    b.backward(weight)
    assert torch.equal(ours.grad, torchs.grad)


def test_only_large_bf16_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation.F, "gelu", lambda x, approximate: "torch")
    assert gelu_tanh(torch.zeros(1 << 16)) == "torch"
    assert gelu_tanh(torch.zeros(100, dtype=torch.bfloat16)) == "torch"
    assert gelu_tanh(torch.zeros(1 << 16, dtype=torch.bfloat16)).shape == (1 << 16,)


@pytest.mark.parametrize("kind", ["gelu_tanh", "gelu", "silu", "relu"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("bias",)])
def test_the_product_behind_computes_again_what_it_did_not_keep(
    kind: str, gated: bool, dtype: torch.dtype, frozen: tuple[str, ...]
) -> None:
    x, weight, bias = torch.randn(2, 5, 24 if gated else 12), torch.randn(7, 12), torch.randn(7)
    upstream = torch.randn(2, 5, 7).to(dtype)

    def leaves() -> dict[str, torch.Tensor]:
        named = {"x": x, "weight": weight, "bias": bias}
        return {n: t.to(dtype).clone().requires_grad_(n not in frozen) for n, t in named.items()}

    ours, plain = leaves(), leaves()
    a = activated_linear(kind, ours["x"], ours["weight"], ours["bias"], gated)
    b = F.linear(activate(kind, plain["x"], gated), plain["weight"], plain["bias"])
    assert torch.equal(a, b)
    a.backward(upstream)
    b.backward(upstream)
    for name in ours:
        if name in frozen:
            assert ours[name].grad is None
        else:
            tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-7}[dtype]
            torch.testing.assert_close(ours[name].grad, plain[name].grad, rtol=tolerance, atol=tolerance)


def test_what_is_kept_is_the_input_alone() -> None:
    kept: list[int] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    x, weight = torch.randn(6, 24, requires_grad=True), torch.randn(5, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        activated_linear("silu", x, weight, None, gated=True)
    assert sorted(kept) == [60, 144]
