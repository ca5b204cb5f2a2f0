"""Activations of a feed-forward layer, and the product behind them.

GELU in its tanh form and SiLU, alone or gated, are one compiled pass on a CPU (``native/activate.c``): torch spends
most of GELU on ``tanh``, and passes over a gated layer up to five times. With the product behind it an activation
keeps neither its result nor, where gated, its parts until the backward.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from limbeck.kernels import native

__all__ = ["activate", "activated_linear"]

_KINDS = {"gelu_tanh": 0, "silu": 1}  # numbers by which the C source knows them


def activate(kind: str, x: Tensor, gated: bool = False) -> Tensor:
    """Return ``f(x)``, or ``f(gate) * up`` for the two halves of ``x``'s last dimension (Shazeer 2020).

    Args:
        kind: "gelu_tanh", "gelu", "silu" or "relu".
        x: (..., F), or (..., 2 F) where ``gated``.
        gated: see above.

    Returns:
        (..., F). The compiled pass computes in float32 and rounds once.
    """
    if _library(kind, x) is not None:
        return cast(Tensor, _Activation.apply(kind, x, gated))  # type: ignore[no-untyped-call]
    return _value(kind, x, gated)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, gated: bool) -> Tensor:
        ctx.kind, ctx.gated = kind, gated
        ctx.save_for_backward(x)
        return _value(kind, x, gated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (x,) = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        return None, _backward(ctx.kind, grad, x, ctx.gated), None


def _library(kind: str, x: Tensor) -> ctypes.CDLL | None:
    """Return the compiled pass, where it serves these numbers here."""
    if kind not in _KINDS or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    if torch.compiler.is_compiling():  # which fuses torch's operations itself
        return None
    library = native.load()
    served = library is not None and library.limbeck_activate(0, 0, 0, 0, 0, None, None, 1)
    return library if served else None


def _value(kind: str, x: Tensor, gated: bool) -> Tensor:
    """``activate``, by torch's operations where it is not compiled."""
    library = _library(kind, x)
    if library is not None:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1])
        library.limbeck_activate(*_shape(kind, x, out, gated), x.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return out
    if gated:
        gate, up = x.chunk(2, dim=-1)
        return _value(kind, gate, False) * up
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def _shape(kind: str, x: Tensor, out: Tensor, gated: bool) -> tuple[int, int, int, int, int]:
    """Return what the compiled passes want to know of x and of ``out``, which is shaped as the result."""
    width = max(out.shape[-1], 1)
    return _KINDS[kind], int(x.dtype == torch.bfloat16), int(gated), out.numel() // width, out.shape[-1]


def activated_linear(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool = False) -> Tensor:
    """Return ``activate(kind, x, gated) @ weight.T + bias``, the same numbers and gradients from less memory.

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
        return F.linear(_value(kind, x, gated), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        _, of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        inner = flat @ weight if of_x else None
        weight_grad = None
        if of_weight:
            weight_grad = flat.t() @ _value(ctx.kind, x, ctx.gated).view(-1, weight.shape[1])
        bias_grad = flat.sum(dim=0) if of_bias else None
        x_grad = None if inner is None else _backward(ctx.kind, inner.view(*x.shape[:-1], -1), x, ctx.gated)
        return None, x_grad, weight_grad, bias_grad, None


def _backward(kind: str, grad: Tensor, x: Tensor, gated: bool) -> Tensor:
    """Gradient of ``activate``'s input."""
    library = _library(kind, x)
    if library is not None:
        x, grad, out = (
            x.contiguous(),
            grad.to(x.dtype).contiguous(),
            torch.empty_like(x, memory_format=torch.contiguous_format),
        )
        library.limbeck_activate_backward(
            *_shape(kind, x, grad, gated), x.data_ptr(), grad.data_ptr(), out.data_ptr(), torch.get_num_threads()
        )
        return out
    if gated:
        out = torch.empty_like(x)
        (gate, up), (gate_grad, up_grad) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(grad, _value(kind, gate, False), out=up_grad)
        gate_grad.copy_(_backward(kind, grad * up, gate, False))
        return out
    aten = torch.ops.aten
    if kind == "silu":
        return cast(Tensor, aten.silu_backward(grad, x))
    if kind == "relu":
        return cast(Tensor, aten.threshold_backward(grad, x, 0))
    return cast(Tensor, aten.gelu_backward(grad, x, approximate="tanh" if kind == "gelu_tanh" else "none"))
