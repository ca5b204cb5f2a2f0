"""Activations of a feed-forward layer, and the product behind them.

GELU in bf16 takes half the time of torch's kernel, which spends it on ``tanh``. With the product behind it an
activation keeps neither its result nor, where gated, its parts until the backward.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["activate", "activated_linear", "gelu_tanh"]

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
_BLOCK = 1 << 19  # elements: two float32 blocks of 2 MiB
_FEW = 1 << 16  # elements: below, one call costs less than seven


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel 2016), ``0.5 x (1 + tanh(u))``, which is ``x sigmoid(2 u)``.

    Both are computed in float32 and rounded once; they differ in the last place of one value in ten thousand.

    Args:
        x: any shape and dtype; all but large bf16 tensors on a CPU are left to torch.
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.numel() < _FEW:
        return F.gelu(x, approximate="tanh")
    return cast(Tensor, _Gelu.apply(x))  # type: ignore[no-untyped-call]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        linear = torch.tensor(_LINEAR)
        wide, slope = torch.empty(min(_BLOCK, x.numel())), torch.empty(min(_BLOCK, x.numel()))
        for part, into in zip(torch.split(x.view(-1), _BLOCK), torch.split(out.view(-1), _BLOCK), strict=True):
            value, s = wide[: part.numel()].copy_(part), slope[: part.numel()]
            torch.addcmul(linear, value, value, value=_CUBIC, out=s)
            into.copy_(s.mul_(value).sigmoid_().mul_(value))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")  # type: ignore[no-any-return]


def activate(kind: str, x: Tensor, gated: bool = False) -> Tensor:
    """``f(x)``, or ``f(gate) * up`` for the two halves of ``x``'s last dimension (Shazeer 2020).

    Args:
        kind: "gelu_tanh", "gelu", "silu" or "relu".
        x: (..., F), or (..., 2 F) where ``gated``.
        gated: see above.

    Returns:
        (..., F).
    """
    if gated:
        gate, up = x.chunk(2, dim=-1)
        return activate(kind, gate) * up
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    return gelu_tanh(x) if kind == "gelu_tanh" else F.gelu(x)


def activated_linear(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool = False) -> Tensor:
    """``activate(kind, x, gated) @ weight.T + bias``, the same numbers and gradients from less memory.

    The backward computes the activation again: a hundredth of a training step, for F or (gated) 3 F numbers a token.

    Args:
        kind: as of ``activate``.
        x: (..., F), or (..., 2 F) where ``gated``.
        weight: (D, F).
        bias: (D,) or None.
        gated: as of ``activate``.
    """
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return F.linear(activate(kind, x, gated), weight, bias)
    return cast(Tensor, _ActivatedLinear.apply(kind, x, weight, bias, gated))  # type: ignore[no-untyped-call]


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> Tensor:
        ctx.kind, ctx.gated = kind, gated
        ctx.save_for_backward(x, weight)
        return F.linear(activate(kind, x, gated), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        _, of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        inner = flat @ weight if of_x else None
        weight_grad = None
        if of_weight:
            weight_grad = flat.t() @ activate(ctx.kind, x, ctx.gated).view(-1, weight.shape[1])
        bias_grad = flat.sum(dim=0) if of_bias else None
        x_grad = None if inner is None else _backward(ctx.kind, inner.view(*x.shape[:-1], -1), x, ctx.gated)
        return None, x_grad, weight_grad, bias_grad, None


def _backward(kind: str, grad: Tensor, x: Tensor, gated: bool) -> Tensor:
    """Gradient of ``activate``'s input."""
    if gated:
        out = torch.empty_like(x)
        (gate, up), (gate_grad, up_grad) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(grad, activate(kind, gate), out=up_grad)
        gate_grad.copy_(_backward(kind, grad * up, gate, False))
        return out
    aten = torch.ops.aten
    if kind == "silu":
        return cast(Tensor, aten.silu_backward(grad, x))
    if kind == "relu":
        return cast(Tensor, aten.threshold_backward(grad, x, 0))
    return cast(Tensor, aten.gelu_backward(grad, x, approximate="tanh" if kind == "gelu_tanh" else "none"))
