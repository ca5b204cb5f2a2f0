"""Typed batches: what flows from data to model and objectives, with the one shift of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IGNORE", "Batch", "Example", "PairBatch", "collate"]

IGNORE = -100
"""Label of a position that predicts nothing; the value PyTorch's losses ignore by default."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row, or a chunk of one.

    Attributes:
        row: index of the row in its data set; the key into a teacher's cache.
        id: stable id of the row, for scores and messages.
        ids: (n,) int32 token ids.
        target: (n,) bool; true where that token is to be learned, i.e. predicted from the token before it.
        offset: place of ``ids[0]`` within its row, where a long row was cut into chunks.
        label: class of the row, for classification.
        sides: token sequences that a batch lays out for it: 2 for a pair.
    """

    sides: ClassVar[int] = 1

    row: int
    id: str
    ids: NDArray[np.int32]
    target: NDArray[np.bool_]
    offset: int = 0
    label: int | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def predictions(self) -> int:
        """Number of tokens learned from it: a first token has nothing before it and is never predicted."""
        return int(self.target[1:].sum())

    @property
    def width(self) -> int:
        """Tokens that a row must have room for."""
        return len(self)

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return len(self)

    @property
    def targets(self) -> int:
        """Tokens learned in all."""
        return self.predictions


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids with everything that says what each one is.

    Attributes:
        ids: (B, T) int64 token ids; padding holds any valid id.
        target_mask: (B, T) bool; true where ``ids[b, t]`` is to be learned (predicted from position ``t - 1``).
        document_ids: (B, T) int32; 0 is padding, equal numbers in a row are one document. Attention and positions
            stay within a document.
        row_ids: (B, T) int64 index of the data row a token comes from; -1 for padding.
        offsets: (B, T) int32 place of the token in that row; 0 for padding.
        labels: (B,) int64 classes, or None.
        plain: every row is one document from column 0 with padding on the right only, so that a causal mask alone
            is exact. Known when the batch is built, so that no device has to be asked.
    """

    ids: Tensor
    target_mask: Tensor
    document_ids: Tensor
    row_ids: Tensor
    offsets: Tensor
    labels: Tensor | None = None
    plain: bool = False

    @classmethod
    def of_ids(cls, ids: Tensor, lengths: Sequence[int] | None = None) -> Batch:
        """Wrap plain ``ids`` (B, T), right-padded to ``lengths``; every real token is a target."""
        b, t = ids.shape
        size = torch.tensor(list(lengths) if lengths is not None else [t] * b, device=ids.device)
        column = torch.arange(t, device=ids.device).expand(b, t)
        real = column < size[:, None]
        rows = torch.arange(b, device=ids.device)[:, None].expand(b, t)
        return cls(
            ids=ids.long(),
            target_mask=real,
            document_ids=real.int(),
            row_ids=torch.where(real, rows, -1),
            offsets=torch.where(real, column, 0).int(),
            plain=True,
        )

    @property
    def real(self) -> Tensor:
        """(B, T) bool: true where a token is not padding."""
        return self.document_ids > 0

    def positions(self) -> Tensor:
        """Return (B, T) int64 place of each token within its document, 0 at its first token and on padding."""
        t = self.ids.shape[1]
        column = torch.arange(t, device=self.ids.device).expand_as(self.ids)
        if self.plain:
            return torch.where(self.real, column, 0)
        starts = torch.ones_like(self.real)
        starts[:, 1:] = self.document_ids[:, 1:] != self.document_ids[:, :-1]
        first = torch.where(starts, column, 0).cummax(dim=1).values
        return torch.where(self.real, column - first, 0)

    def joined(self) -> tuple[Batch, Tensor]:
        """Return all documents end to end, (1, N) without padding, and where each token was, (N,) of B x T."""
        places = self.real.flatten().nonzero()[:, 0]

        def take(x: Tensor) -> Tensor:
            return x.reshape(-1)[places].unsqueeze(0)

        row = torch.arange(self.ids.shape[0], device=self.ids.device)[:, None]
        apart = self.document_ids + row * (self.document_ids.max() + 1)  # the same number in two rows is two documents
        made = replace(
            self,
            ids=take(self.ids),
            target_mask=take(self.target_mask),
            document_ids=take(apart),
            row_ids=take(self.row_ids),
            offsets=take(self.offsets),
            plain=False,
        )
        return made, places

    def _next_in_document(self) -> Tensor:
        """(B, T) bool: position t + 1 exists and belongs to the same document as t."""
        same = torch.zeros_like(self.real)
        same[:, :-1] = (self.document_ids[:, 1:] == self.document_ids[:, :-1]) & self.real[:, 1:]
        return same

    def prediction_mask(self) -> Tensor:
        """Return (B, T) bool: true where the logits at t predict a real token, learned or not: where an all-token KL
        looks.
        """
        return self._next_in_document()

    def next_token_labels(self) -> Tensor:
        """Return (B, T) int64: at t the id of token t + 1 where that is a target of the same document, else ``IGNORE``.

        The only place where labels are shifted (I3): the first answer token is predicted from the last prompt token.
        """
        learn = self._next_in_document()
        learn[:, :-1] &= self.target_mask[:, 1:]
        labels = torch.full_like(self.ids, IGNORE)
        labels[:, :-1] = self.ids[:, 1:]
        return torch.where(learn, labels, IGNORE)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies beside its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            ids=move(self.ids),
            target_mask=move(self.target_mask),
            document_ids=move(self.document_ids),
            row_ids=move(self.row_ids),
            offsets=move(self.offsets),
            labels=None if self.labels is None else move(self.labels),
        )


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Preference pairs: two batches with the same documents' prompts in the same places.

    The p-th document of ``chosen``, row by row, and the p-th of ``rejected`` are one pair; there are P pairs in B rows.

    Attributes:
        chosen: (B, T) prompts with the preferred completions; ``target_mask`` covers the completions only.
        rejected: (B, T') the same prompts with the others.
        keys: P keys of the pairs: row id, ``#`` and a hash of the tokens of both sides.
    """

    chosen: Batch
    rejected: Batch
    keys: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """How many there are, P."""
        return len(self.keys)

    def joined(self) -> tuple[Batch, Tensor]:
        """Return both sides as one batch (2B, max(T, T')), chosen first, for one forward; and what each token belongs
        to.

        Returns:
            The batch, and (2B, max(T, T')) int64: the completion's number, p for the chosen one of pair p and P + p for
            the rejected one; 0 on padding.
        """
        sides = (self.chosen, self.rejected)
        width = max(side.ids.shape[1] for side in sides)

        def lay(name: str, fill: int | bool) -> Tensor:
            parts = [getattr(side, name) for side in sides]
            return torch.cat([F.pad(x, (0, width - x.shape[1]), value=fill) for x in parts])

        joined = Batch(
            ids=lay("ids", 0),
            target_mask=lay("target_mask", False),
            document_ids=lay("document_ids", 0),
            row_ids=lay("row_ids", -1),
            offsets=lay("offsets", 0),
            plain=all(side.plain for side in sides),
        )
        documents = joined.document_ids.long()
        held = documents.amax(dim=1)
        first = held.cumsum(0) - held  # documents in the rows before
        return joined, torch.where(joined.real, first[:, None] + documents - 1, 0)

    def completion_tokens(self) -> Tensor:
        """Return (P, 2) int64 tokens that are scored of each completion, chosen and rejected."""
        joined, sequence = self.joined()
        scored = joined.next_token_labels() != IGNORE
        counted = torch.zeros(2 * self.pairs, dtype=torch.int64, device=scored.device)
        return counted.index_add(0, sequence.reshape(-1), scored.reshape(-1).long()).view(2, self.pairs).t()

    def to(self, device: torch.device | str) -> PairBatch:
        """Return the pairs on ``device``."""
        return PairBatch(self.chosen.to(device), self.rejected.to(device), self.keys)

    def pin(self) -> PairBatch:
        """Return the pairs in pinned memory."""
        return PairBatch(self.chosen.pin(), self.rejected.pin(), self.keys)


def collate(rows: Sequence[Sequence[Example]], pad_id: int = 0, multiple: int = 1, left: bool = False) -> Batch:
    """Lay out rows of one (padded) or several (packed) examples as a batch.

    Args:
        rows: each inner sequence becomes one row, its examples one document each, in order.
        pad_id: id written on padding; any valid id, it is never read.
        multiple: the width is rounded up to a multiple of this.
        left: pad on the left instead of the right.

    Returns:
        A batch (B, T), T the longest row rounded up.
    """
    b = len(rows)
    width = max(sum(len(e) for e in row) for row in rows)
    width = -(-max(width, 1) // multiple) * multiple
    ids = np.full((b, width), pad_id, dtype=np.int64)
    target = np.zeros((b, width), dtype=np.bool_)
    document = np.zeros((b, width), dtype=np.int32)
    row_ids = np.full((b, width), -1, dtype=np.int64)
    offsets = np.zeros((b, width), dtype=np.int32)
    for i, row in enumerate(rows):
        at = width - sum(len(e) for e in row) if left else 0
        for j, e in enumerate(row):
            end = at + len(e)
            ids[i, at:end] = e.ids
            target[i, at:end] = e.target
            document[i, at:end] = j + 1
            row_ids[i, at:end] = e.row
            offsets[i, at:end] = np.arange(e.offset, e.offset + len(e))
            at = end
    has_labels = all(len(row) == 1 and row[0].label is not None for row in rows)
    labels = torch.tensor([row[0].label for row in rows], dtype=torch.int64) if has_labels else None
    plain = all(len(row) == 1 for row in rows) and (not left or all(len(row[0]) == width for row in rows))
    return Batch(
        ids=torch.from_numpy(ids),
        target_mask=torch.from_numpy(target),
        document_ids=torch.from_numpy(document),
        row_ids=torch.from_numpy(row_ids),
        offsets=torch.from_numpy(offsets),
        labels=labels,
        plain=plain,
    )
