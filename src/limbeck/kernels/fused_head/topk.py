"""The top of a dense signal, chunk by chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.kernels.fused_head.divergence import Dense
from limbeck.kernels.fused_head.engine import chunk_size
from limbeck.losses.likelihood import wide

__all__ = ["top_k"]


@torch.no_grad()
def top_k(signal: Dense, k: int, temperature: float, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k likeliest tokens of every row at ``temperature``, over the first ``rows`` of the vocabulary.

    Args:
        signal: hidden states (..., D), N rows when flattened, and head.
        k: at most ``rows``.
        temperature: divides the logits.
        rows: vocabulary rows that share out the probability; what lies beyond is padding.

    Returns:
        log_probs (N, k), their ids (N, k) int64, and the tail's log-mass (N,), -inf where k is ``rows``.

    Raises:
        ValueError: the head has fewer than ``rows`` rows.
    """
    flat = Dense(signal.hidden.reshape(-1, signal.hidden.shape[-1]), signal.head)
    n = flat.hidden.shape[0]
    size = chunk_size(n, 4 * 4 * rows)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for a in range(0, n, size):
        logits = flat.logits(a, min(a + size, n))
        if logits.shape[1] < rows:
            raise ValueError(f"the teacher has {logits.shape[1]} vocabulary rows, fewer than the {rows} asked for")
        scaled = logits[:, :rows].to(wide(logits.dtype)) / temperature
        partition = torch.logsumexp(scaled, dim=1)
        top, ids = scaled.topk(k, dim=1)
        rest = torch.logsumexp(scaled.scatter_(1, ids, -math.inf), dim=1)
        parts.append((top - partition[:, None], ids, rest - partition))
    log_probs, ids, tail = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_probs, ids, tail
