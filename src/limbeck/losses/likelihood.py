"""Negative log-likelihood of labels, token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE", "squared_log_partition", "token_nll", "wide"]

IGNORE = -100
"""Label of a row that predicts nothing; equal to ``limbeck.data.batch.IGNORE``, which this floor may not import."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of softmax arithmetic over logits of ``dtype``: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return negative log-likelihood of each label under its row of logits.

    Args:
        logits: (N, V) of any floating dtype; the arithmetic is in ``wide`` of it.
        labels: (N,) int64 ids, or ``IGNORE``.

    Returns:
        (N,) nats, 0 where the label is ``IGNORE``; float32, or float64 for float64 logits.

    Raises:
        IndexError: a label lies outside 0..V-1 and is not ``IGNORE``.
    """
    return F.cross_entropy(logits.to(wide(logits.dtype)), labels, ignore_index=IGNORE, reduction="none")


def squared_log_partition(logits: Tensor) -> Tensor:
    """Return ``logsumexp(logits)**2`` of (N, V) logits, (N,): the z-loss that keeps logits small (PaLM, 2022, section
    5).
    """
    return torch.logsumexp(logits.to(wide(logits.dtype)), dim=-1).square()
