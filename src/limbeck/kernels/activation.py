"""GELU in bf16 on a CPU at half the time of torch's kernel, which spends it on ``tanh``."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["gelu_tanh"]

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
