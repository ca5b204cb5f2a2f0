"""A frozen linear layer and the low-rank change beside it (Hu et al. 2021), as one operation.

Apart, as autograd has them, every adapter costs a copy of the wide result, a sum of two input gradients, and a product
``grad.T @ z`` that reads the wide gradient across: here the change is added within its product, both ways.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["adapted_linear"]


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return ``x @ weight.T + bias + (x @ a.T) @ b.T``.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), takes no gradient.
        bias: (out_features,) or None, takes no gradient.
        a: (rank, in_features).
        b: (out_features, rank), the factor on the change in it.

    Returns:
        (..., out_features). Each of the two products is rounded to the dtype.
    """
    return cast(Tensor, _AdaptedLinear.apply(x, weight, bias, a, b))  # type: ignore[no-untyped-call]


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y, z = F.linear(flat, weight, bias), flat @ a.t()
        y.addmm_(z, b.t())
        ctx.save_for_backward(x, weight, a, b, z)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, a, b, z = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        grad = grad.reshape(-1, grad.shape[-1])
        z_grad = grad @ b
        a_grad, b_grad = z_grad.t() @ x.reshape(-1, x.shape[-1]), (z.t() @ grad).t()
        if not ctx.needs_input_grad[0]:
            return None, None, None, a_grad, b_grad
        x_grad = (grad @ weight).addmm_(z_grad, a)
        return x_grad.view(x.shape), None, None, a_grad, b_grad
