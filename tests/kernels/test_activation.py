"""GELU in blocks equals torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.kernels import activation
from limbeck.kernels.activation import gelu_tanh


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
