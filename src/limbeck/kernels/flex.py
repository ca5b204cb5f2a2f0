"""Attention under a mask of documents and patterns on a GPU, by torch's FlexAttention: hidden blocks are skipped.

The mask is a rule, never a matrix of all pairs of tokens; only which blocks of 128 x 128 it touches is held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

__all__ = ["BlockMask", "block_mask", "flex_attend", "serves"]

Allows = Callable[[Tensor, Tensor], Tensor]
_LEAST_WIDTH = 16  # of a head: of fewer columns a GPU has no product


def serves(q: Tensor) -> bool:
    """Return whether ``flex_attend`` serves queries (B, H, T, D) like these; its kernels sum in float32, too narrow for
    float64.
    """
    return q.shape[-1] >= _LEAST_WIDTH and q.dtype != torch.float64


def block_mask(documents: Tensor, positions: Tensor, allows: Allows) -> BlockMask:
    """Return what ``View.dense_mask`` says, by blocks: the same document, ``allows``, and every token itself.

    Args:
        documents: (B, T) document of each token.
        positions: (B, T) its position.
        allows: two broadcastable tensors of positions -> bool: may the first see the second?
    """

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[row, query] == documents[row, key]
        return (same & allows(positions[row, query], positions[row, key])) | (query == key)

    b, t = documents.shape
    make = _compiled(create_block_mask) if documents.is_cuda else create_block_mask
    made: BlockMask = make(seen, b, None, t, t, device=documents.device)
    return made


def flex_attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None = None) -> Tensor:
    """Return scaled dot-product attention under ``mask``; compiled on a GPU, torch's reference elsewhere.

    Args:
        q: (B, H, T, D) queries.
        k: (B, KV, T, D) keys, H a multiple of KV.
        v: (B, KV, T, D) values.
        mask: of ``block_mask``.
        scale: factor on the scores; None: D**-0.5.

    Returns:
        (B, H, T, D).
    """
    eager = cast(Callable[..., Any], flex_attention)
    run = _compiled(eager) if q.is_cuda else eager
    out: Tensor = run(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for every width: batches of text have many."""
    return torch.compile(function, dynamic=True)
