"""Fused losses of the head as single calls on hidden rows, which tests compare with plain formulas."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from limbeck.kernels.fused_head.divergence import TeacherLoss
from limbeck.kernels.fused_head.fused import Losses, LossWeights, fused_rows, kept_rows

__all__ = ["fused_distill", "fused_divergence", "fused_nll", "fused_nll_z", "fused_sequence_log_probs"]


def _kept(
    hidden: Tensor, weight: Tensor, labels: Tensor | None, comparison: TeacherLoss | None, **options: Any
) -> Losses:
    """``fused_rows`` of the rows that count, as sums."""
    index = kept_rows(labels, comparison)
    if index is not None:
        hidden = hidden.index_select(0, index)
        labels = None if labels is None else labels.index_select(0, index)
        comparison = None if comparison is None else comparison.select(index)
    return fused_rows(hidden, weight, labels, comparison=comparison, **options).sums()


def fused_nll(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    expected: float = 1.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum of the negative log-likelihood of ``labels``, rows with ``IGNORE`` dropped before the product.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64.
        bias: (V,).
        expected: derivative of the final loss in this sum, where known: saves one scaling of the gradients.
        chunk_rows: see ``fused_rows``.

    Returns:
        Scalar, nats.
    """
    weights = LossWeights(nll=expected)
    sums = _kept(hidden, weight, labels, None, bias=bias, expected=weights, chunk_rows=chunk_rows)
    return cast(Tensor, sums.nll)


def fused_nll_z(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    expected: LossWeights = LossWeights(),  # noqa: B008 - an immutable value
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``fused_nll``, and the sum over the same rows of the squared log-partition: two scalars."""
    sums = _kept(hidden, weight, labels, None, bias=bias, z=True, expected=expected, chunk_rows=chunk_rows)
    return cast(Tensor, sums.nll), cast(Tensor, sums.z)


def fused_divergence(
    hidden: Tensor,
    weight: Tensor,
    comparison: TeacherLoss,
    *,
    bias: Tensor | None = None,
    expected: float = 1.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum over the compared rows of a divergence to a teacher: scalar, nats, not multiplied by T**2."""
    weights = LossWeights(divergence=expected)
    sums = _kept(hidden, weight, None, comparison, bias=bias, expected=weights, chunk_rows=chunk_rows)
    return cast(Tensor, sums.divergence)


def fused_distill(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    comparison: TeacherLoss,
    *,
    bias: Tensor | None = None,
    expected: LossWeights = LossWeights(),  # noqa: B008
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the negative log-likelihood and of a divergence, over their own rows, from one projection of the union.

    ``expected`` gives the derivatives of the final loss in the two sums. Where their ratio is right to rounding the
    backward is free; otherwise it runs the pass again with the weights that came in.
    """
    sums = _kept(hidden, weight, labels, comparison, bias=bias, expected=expected, chunk_rows=chunk_rows)
    return cast(Tensor, sums.nll), cast(Tensor, sums.divergence)


def fused_sequence_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    sequence: Tensor,
    sequences: int,
    *,
    bias: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Summed log-probability of each sequence's labels, as preference losses need them.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64; rows with ``IGNORE`` are dropped before the product.
        sequence: (N,) int64, which sequence a row belongs to.
        sequences: how many there are, B.
        bias: (V,).
        chunk_rows: see ``fused_rows``.

    Returns:
        (B,) nats, 0 for a sequence without labels.
    """
    index = kept_rows(labels, None)
    if index is not None:
        hidden, labels, sequence = (x.index_select(0, index) for x in (hidden, labels, sequence))
    frozen = not weight.requires_grad and not (bias is not None and bias.requires_grad)
    expected = LossWeights() if frozen else None  # a trainable head's gradient needs the sequences' weights first
    nll = cast(Tensor, fused_rows(hidden, weight, labels, bias=bias, expected=expected, chunk_rows=chunk_rows).nll)
    return nll.new_zeros(sequences).index_add(0, sequence, -nll)
