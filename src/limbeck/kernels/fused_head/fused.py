"""Losses fused with the head projection, so that the (tokens x vocabulary) logits never exist whole.

The forward computes losses *and* gradients, chunk by chunk, since the logits are at hand then: three matrix products in
all, as many as plain autograd, and no second softmax. What a row's gradient weighs in the end is known only in the
backward, so the forward forms the gradient for an *expected* weight of each loss; the backward checks what came in:

- in proportion to what was expected (always so for one sum; for several where the caller told their true ratio): the
  saved gradients are scaled, in place, and handed over;
- one loss, frozen head, any weights (preference losses under an adapter): the hidden gradient is scaled row by row;
- anything else: the pass is run again for the weights that came in. Exact, one more head product.

So memory is that of one gradient whatever the number of losses, and a wrong expectation costs time, never accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from limbeck.kernels.fused_head.divergence import TeacherLoss, compute_dtype
from limbeck.kernels.fused_head.engine import Gradients, Problem, RowWeights, run
from limbeck.losses.likelihood import IGNORE, wide

__all__ = [
    "Losses",
    "LossWeights",
    "fused_rows",
    "kept_rows",
]


class LossWeights(NamedTuple):
    """Expected derivative of the final loss in each sum; only ratios matter, and only to speed."""

    nll: float = 1.0
    z: float = 1.0
    divergence: float = 1.0


class Losses(NamedTuple):
    """Losses in nats, (N,) row by row or scalar sums; None where not asked for."""

    nll: Tensor | None
    z: Tensor | None
    divergence: Tensor | None

    def sums(self) -> Losses:
        """Sum each over its rows."""
        return Losses(*(None if x is None else x.sum() for x in self))


@dataclass(slots=True)
class _Saved:
    """What the forward leaves for the backward besides tensors under autograd's care.

    ``problem`` holds the weight as it is given; its cast to the products' ``dtype`` lives during a pass alone.
    """

    problem: Problem
    dtype: torch.dtype
    expected: LossWeights | None
    grads: Gradients | None

    def run(self, weights: RowWeights | None, wanted: Gradients) -> tuple[RowWeights, Gradients]:
        p = self.problem
        bias = None if p.bias is None else p.bias.to(self.dtype)
        return run(replace(p, weight=p.weight.to(self.dtype), bias=bias), weights, wanted)


def _row_weights(problem: Problem, weights: LossWeights) -> RowWeights:
    n, dtype = problem.hidden.shape[0], wide(problem.hidden.dtype)

    def full(value: float) -> Tensor:
        return torch.full((n,), value, dtype=dtype, device=problem.hidden.device)

    return RowWeights(
        nll=full(weights.nll) if problem.labels is not None else None,
        z=full(weights.z) if problem.z else None,
        divergence=full(weights.divergence) if problem.comparison is not None else None,
    )


def _proportion(came: RowWeights, expected: LossWeights) -> float | None:
    """Return the factor by which all of ``came`` differs from ``expected`` to within rounding, or None if there is
    none.
    """
    low, high, tolerance = float("inf"), float("-inf"), 0.0
    for grad, weight in zip((came.nll, came.z, came.divergence), expected, strict=True):
        if grad is None or grad.numel() == 0:
            continue
        if weight == 0:
            return None
        least, most = torch.aminmax(grad)
        ends = (float(least) / weight, float(most) / weight)
        low, high, tolerance = min(low, *ends), max(high, *ends), 4 * torch.finfo(grad.dtype).eps
    if low > high:
        return 1.0
    return high if high - low <= tolerance * abs(high) else None


class _Rows(torch.autograd.Function):
    """(hidden, weight, bias) -> losses of every row."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, saved: _Saved, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        problem = saved.problem
        weights = _row_weights(problem, saved.expected) if any(needs) and saved.expected is not None else None
        losses, grads = saved.run(weights, _wanted(hidden, weight, bias, needs))
        ctx.set_materialize_grads(False)
        ctx.needs, ctx.saved = needs, saved
        if any(needs):
            ctx.save_for_backward(hidden, weight, bias)
            saved.grads = grads if weights is not None else None
        return losses.nll, losses.z, losses.divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        saved: _Saved = ctx.saved
        came = RowWeights(*incoming)
        hidden, weight, bias = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        # The saved gradients are given away, not copied: a second backward through a kept graph computes them again.
        grads, saved.grads = saved.grads, None
        if grads is not None and saved.expected is not None:
            scaled = _scale(grads, came, saved)
            if scaled is not None:
                return scaled.hidden, scaled.weight, scaled.bias, None, None
        grads = None
        _, fresh = saved.run(came, _wanted(hidden, weight, bias, ctx.needs))
        return fresh.hidden, fresh.weight, fresh.bias, None, None


def _wanted(hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]) -> Gradients:
    return Gradients(hidden if needs[0] else None, weight if needs[1] else None, bias if needs[2] else None)


def _scale(grads: Gradients, came: RowWeights, saved: _Saved) -> Gradients | None:
    """Turn gradients for the expected weights into those for ``came``, or None where that takes a new pass."""
    assert saved.expected is not None
    asked = [came.nll is not None, came.z is not None, came.divergence is not None]
    p = saved.problem
    complete = asked == [p.labels is not None, p.z, p.comparison is not None]
    factor = _proportion(came, saved.expected) if complete else None
    if factor is not None:
        for x in (grads.hidden, grads.weight, grads.bias):
            if x is not None and factor != 1:
                x.mul_(factor)
        return grads
    one_loss = complete and sum(asked) == 1
    if one_loss and grads.weight is None and grads.bias is None and grads.hidden is not None:
        index = asked.index(True)
        row = (came.nll, came.z, came.divergence)[index]
        if row is not None and saved.expected[index] != 0:
            return Gradients(hidden=grads.hidden.mul_((row / saved.expected[index])[:, None]))
    return None


def kept_rows(labels: Tensor | None, comparison: TeacherLoss | None) -> Tensor | None:
    """Return (M,) indices of rows that have a label or are compared; None: every row."""
    keep = None if labels is None else labels != IGNORE
    if comparison is not None:
        if comparison.mask is None:
            return None
        keep = comparison.mask if keep is None else keep | comparison.mask
    if keep is None:
        raise ValueError("a fused loss needs labels for a likelihood, or a comparison for a divergence")
    index = keep.nonzero()[:, 0]
    return None if index.shape[0] == keep.shape[0] else index


def fused_rows(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    z: bool = False,
    comparison: TeacherLoss | None = None,
    expected: LossWeights | None = None,
    chunk_rows: int | None = None,
) -> Losses:
    """Return losses of every row of ``hidden @ weight.T + bias``, all rows computed.

    Args:
        hidden: (N, D). Its dtype is that of the matrix products, or autocast's where that is on; softmax arithmetic and
            the sum over chunks of the weight's gradient are in float32 (float64 for float64).
        weight: (V, D) of the head; cast to the products' dtype where it differs.
        labels: (N,) int64 or ``IGNORE``; None: no likelihood.
        bias: (V,).
        z: also the squared log-partition of rows with a label.
        comparison: a divergence to a teacher's rows (N of them), which take no gradient.
        expected: derivatives of the final loss in the losses; None: unknown until the backward, which runs a pass then.
        chunk_rows: rows whose logits exist at once; None: as many as 64 MiB hold.

    Returns:
        (N,) losses in nats, 0 in rows that do not count.

    Raises:
        ValueError: neither labels nor comparison are given, or a top-k does not fit.
    """
    if labels is None and (comparison is None or z):
        raise ValueError("a fused loss needs labels for a likelihood and z-loss, or a comparison for a divergence")
    held_bias = None if bias is None else bias.detach()
    problem = Problem(hidden.detach(), weight.detach(), held_bias, labels, z, comparison, chunk_rows)
    on = torch.is_grad_enabled()
    needs = (on and hidden.requires_grad, on and weight.requires_grad, on and bias is not None and bias.requires_grad)
    rows = _Rows.apply(hidden, weight, bias, _Saved(problem, compute_dtype(hidden), expected, None), needs)  # type: ignore[no-untyped-call]
    return Losses(*rows)
