"""Batches: an endless, shuffled stream that is a pure function of the index, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.batch import Example, collate
from limbeck.data.packing import pack
from limbeck.errors import DataError

__all__ = ["Batches", "CollateFn", "fixed_batches"]

_PACK_WINDOW = 8192  # documents packed at a time
_BUCKET_WINDOW = 64  # batches whose rows are sorted by length together

Order = NDArray[np.int64]
CollateFn = Callable[[Sequence[Sequence[Example]], int], Any]
"""Lays out rows of examples as a batch, given the id written on padding."""


class Batches:
    """Micro-batches of a set of examples, epoch after epoch.

    Within an epoch every example comes exactly once. The order of an epoch is drawn from ``(seed, epoch)``. With
    packing, which examples share a row is drawn once from ``seed``, so that every epoch has as many batches; the order
    of the rows still changes.

    Args:
        examples: the examples, none longer than ``context``.
        batch_size: rows of a batch; the last batch of an epoch may have fewer.
        context: most tokens of a row.
        pad_id: id written on padding.
        packing: several documents in a row, none of them split.
        bucketing: rows of like length in one batch, for less padding; batches in random order.
        shuffle: without it, epochs are alike and in the examples' order: rows by their first example where packed, by
            length within windows where bucketed.
        seed: of the order.
        collate_fn: lays out the examples of each row as a batch.

    Raises:
        DataError: no example, or one longer than ``context``.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        context: int,
        pad_id: int,
        packing: bool = False,
        bucketing: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        collate_fn: CollateFn = collate,
    ) -> None:
        if not examples:
            raise DataError("there are no examples to make batches of")
        if batch_size < 1 or seed < 0:
            raise DataError(f"batch_size must be at least 1 and the seed at least 0, not {batch_size} and {seed}")
        lengths = np.fromiter((e.width for e in examples), dtype=np.int64, count=len(examples))
        longest = int(lengths.argmax())
        if lengths[longest] > context:
            name, size = examples[longest].id, int(lengths[longest])
            raise DataError(
                f"row {name} has {size} tokens for a context of {context}; truncate it or raise the context"
            )
        self._examples, self._lengths = examples, lengths
        self._batch_size, self._pad_id = batch_size, pad_id
        self._bucketing, self._shuffle, self._seed = bucketing, shuffle, seed
        self._collate_fn = collate_fn
        self._rows = self._pack(context) if packing else None
        self._row_lengths = (
            lengths if self._rows is None else np.array([lengths[row].sum() for row in self._rows], dtype=np.int64)
        )
        # A memo, not state: what it holds is a function of the epoch. Two, as streams are read ahead over a border.
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def per_epoch(self) -> int:
        """Micro-batches of an epoch."""
        return -(-len(self._row_lengths) // self._batch_size)

    def at(self, index: int) -> Any:
        """Return the ``index``-th micro-batch of the endless stream: a ``Batch`` (B, T) or what ``collate_fn`` makes.

        It is padded on the right, T the longest row.

        Raises:
            IndexError: ``index`` is negative.
        """
        if index < 0:
            raise IndexError(f"a stream of batches begins at 0, not {index}")
        epoch, place = divmod(index, self.per_epoch)
        rows = self._plan(epoch)[place].tolist()
        documents = [[r] for r in rows] if self._rows is None else [self._rows[r] for r in rows]
        return self._collate_fn([[self._examples[i] for i in row] for row in documents], self._pad_id)

    def describe(self) -> dict[str, Any]:
        """Return counts of one epoch; ``padding_share`` is that of epoch 0, of all tokens in its batches."""
        widths = [int(self._row_lengths[rows].max()) * len(rows) for rows in self._plan(0)]
        tokens, sides = sum(e.tokens for e in self._examples), self._examples[0].sides
        return {
            "examples": len(self._examples),
            "tokens": tokens,
            "target_tokens": sum(e.targets for e in self._examples),
            "longest_tokens": int(self._lengths.max()),
            "rows_per_epoch": len(self._row_lengths),
            "batches_per_epoch": self.per_epoch,
            "padding_share": 1.0 - tokens / (sides * sum(widths)),
        }

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, *place])))

    def _pack(self, context: int) -> list[list[int]]:
        count = len(self._lengths)
        order = self._random(0).permutation(count) if self._shuffle else np.arange(count)
        rows = pack(self._lengths, order, context, _PACK_WINDOW)
        return rows if self._shuffle else sorted(sorted(row) for row in rows)

    def _make_plan(self, epoch: int) -> list[Order]:
        """Rows of every batch of one epoch."""
        count, size = len(self._row_lengths), self._batch_size
        random = self._random(1, epoch) if self._shuffle else None
        order = np.arange(count) if random is None else random.permutation(count)
        if self._bucketing:
            order = self._sort_windows(order, size * _BUCKET_WINDOW)
        batches = [order[start : start + size] for start in range(0, count, size)]
        if self._bucketing and random is not None:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def _sort_windows(self, order: Order, window: int) -> Order:
        parts = (order[start : start + window] for start in range(0, len(order), window))
        return np.concatenate([part[np.argsort(self._row_lengths[part], kind="stable")] for part in parts])


def fixed_batches(
    examples: Sequence[Example], batch_size: int, context: int, pad_id: int, collate_fn: CollateFn = collate
) -> list[Any]:
    """Return all ``examples``, in batches of like length and an order that nothing changes; none of no examples."""
    if not examples:
        return []
    batches = Batches(
        examples,
        batch_size=batch_size,
        context=context,
        pad_id=pad_id,
        bucketing=True,
        shuffle=False,
        collate_fn=collate_fn,
    )
    return [batches.at(i) for i in range(batches.per_epoch)]
