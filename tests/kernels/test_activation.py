"""Activations equal their definition, compiled and not, and so does the product behind them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.kernels import activation, native
from limbeck.kernels.activation import activate, activated_linear


def torchs(kind: str, x: torch.Tensor, gated: bool) -> torch.Tensor:
    """By torch's operations, as one would write it."""
    f = {"gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "silu": F.silu}[kind]
    gate, up = x.chunk(2, dim=-1) if gated else (x, None)
    return f(gate) if up is None else f(gate) * up


def need_compiled(kind: str) -> None:
    if activation._library(kind, torch.zeros(1)) is None:
        pytest.skip("there is no compiled pass here")


@pytest.mark.parametrize("kind", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(3, 70, 406), (1, 14), (2, 0, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("compiled", [True, False])
def test_values_and_gradients_are_those_of_the_definition(
    kind: str, gated: bool, shape: tuple[int, ...], dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "load", lambda: None)
    else:
        need_compiled(kind)
    x = (4 * torch.randn(shape)).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, -60.0, 60.0, 1e-20])[: x.numel()]
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    a, b = activate(kind, ours, gated), torchs(kind, exact, gated)
    assert a.dtype == dtype and a.shape == b.shape
    weight = torch.randn(b.shape)
    a.backward(weight.to(dtype))
    b.backward(weight.to(dtype).double())
    tolerance = {torch.bfloat16: 2**-6, torch.float32: 1e-5}[dtype]  # torch's own operations round several times
    lost = 1e-6 if compiled else 3e-5  # torch's 1 + tanh cancels where x is far below 0
    torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=lost)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=tolerance, atol=max(tolerance / 4, lost))


@pytest.mark.parametrize("kind", ["gelu_tanh", "silu"])
def test_the_compiled_pass_takes_any_layout_and_number_of_threads(kind: str) -> None:
    need_compiled(kind)
    x, threads = torch.randn(9, 50, dtype=torch.float32), torch.get_num_threads()
    whole = activate(kind, x)
    assert torch.equal(activate(kind, x.t()).t(), whole)
    assert torch.equal(torch.stack([activate(kind, row) for row in x]), whole)
    try:
        torch.set_num_threads(3)
        assert torch.equal(activate(kind, x), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_no_number_stays_none(kind: str, dtype: torch.dtype) -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf")], dtype=dtype, requires_grad=True)
    y = activate(kind, x)
    y.sum().backward()
    assert y[0].isnan() and y[1].isfinite() and not y[2].isfinite()
    assert x.grad[0].isnan() and x.grad[1].isfinite()


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
