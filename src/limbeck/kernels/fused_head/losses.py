"""Losses through a head module: fused where it is a plain linear layer, else chunk by chunk through its forward."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss, plain_linear
from limbeck.kernels.fused_head.engine import chunk_size
from limbeck.kernels.fused_head.fused import Losses, LossWeights, fused_rows, kept_rows
from limbeck.losses.divergence import divergence
from limbeck.losses.likelihood import IGNORE, squared_log_partition, token_nll

__all__ = ["head_losses", "head_sequence_log_probs"]


def head_losses(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None = None,
    *,
    z: bool = False,
    comparison: TeacherLoss | None = None,
    expected: LossWeights | None = None,
    chunk_rows: int | None = None,
) -> Losses:
    """Return sums of losses of ``head(hidden)``; rows that count nowhere are dropped before it.

    Args:
        hidden: (..., D) final hidden states, N rows when flattened.
        head: maps (n, D) to logits (n, V). Plain linear layers are fused with the losses; of any other (quantized,
            under an adapter) each chunk's logits are computed again in the backward instead of kept.
        labels: N int64 labels of any shape, or ``IGNORE``; None: no likelihood.
        z: also sum the squared log-partition over rows with a label.
        comparison: a divergence; its teacher's signal and mask have N rows of any shape.
        expected: derivatives of the final loss in the sums, where known (see ``fused``); used by the fused path alone.
        chunk_rows: rows whose logits exist at once; None: by memory.

    Returns:
        Scalar sums in nats; None where not asked for.

    Raises:
        ValueError: neither labels nor comparison are given, or a z-loss without labels.
    """
    if z and labels is None:
        raise ValueError("a z-loss needs labels: it runs over the rows that have one")
    flat, labels, comparison = _flatten(hidden, labels, comparison)
    return _rows(flat, head, labels, z, comparison, expected, chunk_rows).sums()


def head_sequence_log_probs(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    sequence: Tensor | None = None,
    sequences: int | None = None,
    *,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return summed log-probability of each sequence's labels; ``IGNORE`` rows are dropped before the head.

    Args:
        hidden: (B, T, D) final hidden states.
        head: maps (n, D) to logits (n, V).
        labels: (B, T) int64 ids, or ``IGNORE``.
        sequence: (B, T) int64, which sequence a place belongs to; None: each row is one.
        sequences: how many there are, S; None: B.
        chunk_rows: rows whose logits exist at once; None: by memory.

    Returns:
        (S,) nats, 0 for a sequence without labels.
    """
    b, t = labels.shape
    if sequence is None:
        sequence = torch.arange(b, device=labels.device)[:, None].expand(b, t)
    sequence = sequence.reshape(-1)
    index = kept_rows(labels.reshape(-1), None)
    sequence = sequence if index is None else sequence.index_select(0, index)
    flat, labels_kept, _ = _flatten(hidden, labels, None)
    linear = plain_linear(head)
    frozen = linear is not None and not any(x is not None and x.requires_grad for x in linear)
    rows = _rows(flat, head, labels_kept, False, None, LossWeights() if frozen else None, chunk_rows)
    nll = cast(Tensor, rows.nll)
    return nll.new_zeros(b if sequences is None else sequences).index_add(0, sequence, -nll)


def _flatten(
    hidden: Tensor, labels: Tensor | None, comparison: TeacherLoss | None
) -> tuple[Tensor, Tensor | None, TeacherLoss | None]:
    """Lay rows out flat and keep those that count."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    labels = None if labels is None else labels.reshape(-1)
    if comparison is not None:
        mask = None if comparison.mask is None else comparison.mask.reshape(-1)
        comparison = TeacherLoss(comparison.teacher, comparison.divergence, comparison.temperature, mask)
    index = kept_rows(labels, comparison)
    if index is None:
        everything = torch.arange(flat.shape[0], device=flat.device)
        return flat, labels, None if comparison is None else comparison.select(everything)
    labels = None if labels is None else labels.index_select(0, index)
    return flat.index_select(0, index), labels, None if comparison is None else comparison.select(index)


def _rows(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None,
    z: bool,
    comparison: TeacherLoss | None,
    expected: LossWeights | None,
    chunk_rows: int | None,
) -> Losses:
    linear = plain_linear(head)
    if linear is not None:
        weight, bias = linear
        return fused_rows(
            hidden, weight, labels, bias=bias, z=z, comparison=comparison, expected=expected, chunk_rows=chunk_rows
        )
    return _through_module(hidden, head, labels, z, comparison, chunk_rows)


def _through_module(
    hidden: Tensor, head: nn.Module, labels: Tensor | None, z: bool, comparison: TeacherLoss | None, rows: int | None
) -> Losses:
    """Losses of every row through ``head``'s own forward; the backward recomputes one chunk's logits at a time."""

    def chunk_losses(x: Tensor, a: int, b: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        logits = head(x)
        nll = z2 = compared = None
        if labels is not None:
            nll = token_nll(logits, labels[a:b])
            if z:
                z2 = squared_log_partition(logits).masked_fill(labels[a:b] == IGNORE, 0)
        if comparison is not None:
            t = comparison.teacher
            teacher = t.logits(a, b) if isinstance(t, Dense) else t.part(a, b)
            compared = divergence(comparison.divergence, logits, teacher, comparison.temperature)
            if comparison.mask is not None:
                compared = compared.masked_fill(~comparison.mask[a:b], 0)
        return nll, z2, compared

    n = hidden.shape[0]
    size = rows or _module_chunk(hidden, head)
    pieces = [
        checkpoint(chunk_losses, hidden[a : a + size], a, min(a + size, n), use_reentrant=False)
        for a in range(0, max(n, 1), size)
    ]
    return Losses(*(None if column[0] is None else torch.cat(column) for column in zip(*pieces, strict=True)))


def _module_chunk(hidden: Tensor, head: nn.Module) -> int:
    """Rows of a chunk; plain autograd holds about six float32 copies of its logits, the teacher's included."""
    with torch.no_grad():
        vocabulary = head(hidden[:1].detach()).shape[-1]
    return chunk_size(hidden.shape[0], 6 * 4 * vocabulary)
