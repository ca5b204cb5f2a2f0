"""Losses and logit gradients of a few rows of logits at a time, in place in scratch memory that fits a core's cache.

A tile is (n, V) logits in wide arithmetic (float32 or float64). Each function turns it into the gradient with respect
to the logits, and returns the losses. ``likelihood_in_place`` takes rows as they are.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from limbeck.kernels import native
from limbeck.kernels.fused_head.divergence import TeacherLoss
from limbeck.losses.divergence import TopK
from limbeck.losses.likelihood import IGNORE

__all__ = ["compare_dense", "compare_topk", "compiled_likelihood", "likelihood", "likelihood_in_place", "scatter_rows"]


def likelihood(tile: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits into ``exp(logits - max)``.

    Args:
        tile: (n, V) logits, overwritten.
        labels: (n,) ids, or ``IGNORE``.

    Returns:
        nll (n,), 0 where ignored; log-partition (n,); and the sum (n,) of each overwritten row, so that the softmax is
        ``tile / sum``. Dividing is left to the caller, who can often do it where rows are short.
    """
    top = tile.amax(dim=1, keepdim=True)
    tile.sub_(top)
    ignored = labels == IGNORE
    chosen = tile.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
    total = tile.exp_().sum(dim=1)
    log_total = total.log()
    return (log_total - chosen).masked_fill_(ignored, 0), log_total + top[:, 0], total


def compiled_likelihood(logits: Tensor) -> ctypes.CDLL | None:
    """Return the library whose pass serves ``logits`` here (``native/likelihood.c``), or None."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = native.load()
    served = library is not None and library.limbeck_likelihood(0, 0, 0, 0, None, None, None, None, None, 1)
    return library if served else None


def likelihood_in_place(
    library: ctypes.CDLL, logits: Tensor, labels: Tensor, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``likelihood`` in one compiled pass over rows of any number.

    Args:
        library: by ``compiled_likelihood``.
        logits: (n, V), contiguous. Where ``gradient``, they become that of each row's nll, times the row's sum.
        labels: (n,) ids, or ``IGNORE``.
        gradient: else the logits are left as they are.

    Returns:
        nll, log-partition and sum, float32, as of ``likelihood``.

    Raises:
        IndexError: a label lies outside 0..V-1 and is not ``IGNORE``.
    """
    rows, vocabulary = logits.shape
    labels = labels.contiguous()
    if rows and not bool(((labels == IGNORE) | ((labels >= 0) & (labels < vocabulary))).all()):
        raise IndexError(f"a label lies outside 0..{vocabulary - 1}, the vocabulary of the logits")
    out = torch.empty(3, rows, dtype=torch.float32)
    library.limbeck_likelihood(
        logits.dtype == torch.bfloat16, gradient, rows, vocabulary, logits.data_ptr(), labels.data_ptr(),
        *(row.data_ptr() for row in out), torch.get_num_threads(),
    )  # fmt: skip
    return out[0], out[1], out[2]


def scatter_rows(tile: Tensor, labels: Tensor, amounts: Tensor) -> None:
    """Subtract ``amounts`` (n,) from each row of ``tile`` at its label; rows that are ignored have amount 0."""
    tile.scatter_add_(1, labels.masked_fill(labels == IGNORE, 0)[:, None], -amounts[:, None])


def compare_dense(tile: Tensor, teacher: Tensor, scale: Tensor | None, comparison: TeacherLoss) -> Tensor:
    """Return the divergence to a teacher's logits.

    Args:
        tile: (n, V) student logits, overwritten with ``scale`` times the divergence's gradient in them.
        teacher: (n, V) teacher logits, overwritten.
        scale: (n,) factor of each row's gradient; None: values only.
        comparison: divergence and temperature.

    Returns:
        (n,) nats.
    """
    t = comparison.temperature
    if t != 1:
        tile.mul_(1 / t)
        teacher.mul_(1 / t)
    student, target = torch.log_softmax(tile, dim=1), torch.log_softmax(teacher, dim=1, out=teacher)
    value, slope, total = comparison.divergence.value_and_slope(student, target)
    if scale is not None:
        factor = (scale / t)[:, None]
        torch.exp(student, out=tile)
        torch.addcmul(slope.mul_(factor), tile, total[:, None] * factor, value=-1, out=tile)
    return value


def compare_topk(tile: Tensor, teacher: TopK, scale: Tensor | None, comparison: TeacherLoss) -> Tensor:
    """Return the divergence over the top-k partition; arguments and result as ``compare_dense``.

    With buckets b, student bucket masses q_b and slopes h_b, the gradient in the logit of token v is
    ``h_v - q_v H`` for a top token and ``q_v (h_tail / q_tail - H)`` for any other, H the sum of all slopes: one scaled
    copy of the softmax and k corrections.
    """
    t = comparison.temperature
    if t != 1:
        tile.mul_(1 / t)
    tile.sub_(tile.amax(dim=1, keepdim=True))
    chosen = tile.gather(1, teacher.ids)
    tile.exp_().scatter_(1, teacher.ids, 0)
    mass, rest = chosen.exp(), tile.sum(dim=1, keepdim=True)
    log_total = (rest + mass.sum(dim=1, keepdim=True)).log()
    student = chosen - log_total
    target = teacher.buckets(tile.dtype, tile.shape[1])
    has_tail = target.shape[1] > student.shape[1]
    rest = rest.clamp_min(torch.finfo(tile.dtype).tiny)  # all other tokens may underflow
    if has_tail:
        student = torch.cat((student, rest.log() - log_total), dim=1)
    value, slope, total = comparison.divergence.value_and_slope(student, target)
    if scale is not None:
        k, factor, total_slope = teacher.ids.shape[1], (scale / t)[:, None], total[:, None]
        top = (slope[:, :k] - student[:, :k].exp() * total_slope) * factor
        if has_tail:
            tile.mul_((slope[:, k:] / rest - total_slope * (-log_total).exp()) * factor)
        tile.scatter_(1, teacher.ids, top)
    return value
