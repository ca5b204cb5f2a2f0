"""Corpora mixed by weight: packed batches that are a pure function of their index, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.batch import Batch, Example, collate
from limbeck.data.shards import Corpus
from limbeck.errors import ConfigError, DataError

__all__ = ["Mixture"]

_BLOCK = 1024  # rows among which the corpora keep their shares
_LEAST = 4 / _BLOCK  # share below which a corpus might owe rows at the end of a block

Order = NDArray[np.int64]


class Mixture:
    """Micro-batches of full rows: each corpus is one run of tokens, cut every ``context - 1``.

    Neighbouring rows share one token, so that each token but a document's first is predicted exactly once an epoch;
    attention and positions stop at the borders of documents. After any number of whole blocks of 1,024 rows a corpus
    has had its share of the rows to within one row. Within the block the order is drawn, as is the order of a
    corpus's rows in each of its epochs. Fewer tokens than a row at a corpus's end are never seen.

    Args:
        corpora: what to mix.
        weights: share of each among the rows (and so among the tokens), in any unit.
        batch_size: rows of a micro-batch.
        context: tokens of a row.
        pad_id: any valid id; rows are full, so that none is written.
        seed: of the order.

    Raises:
        ConfigError: weights that are not above 0, or a share below 1/256.
        DataError: a corpus with fewer tokens than one row.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float],
        *,
        batch_size: int,
        context: int,
        pad_id: int,
        seed: int = 0,
    ) -> None:
        total = float(sum(weights))
        for corpus, weight in zip(corpora, weights, strict=True):
            if not weight > 0 or weight / total < _LEAST:
                raise ConfigError(f"corpus '{corpus.name}' has weight {weight:g} of {total:g}: give it 1/256 or more")
            if corpus.tokens < context:
                raise DataError(f"corpus '{corpus.name}' has {corpus.tokens} tokens, fewer than a row of {context}")
        self.corpora, self.shares = tuple(corpora), tuple(float(w) / total for w in weights)
        self._edges = np.concatenate([[0.0], np.cumsum(self.shares)])
        self._edges[-1] = 1.0
        self._batch_size, self._context, self._pad_id, self._seed = batch_size, context, pad_id, seed
        self.rows = tuple((c.tokens - 1) // (context - 1) for c in corpora)
        # Memos, not state: what they hold is a function of their arguments.
        self._order = lru_cache(maxsize=2 * len(self.corpora))(self._make_order)
        self._block = lru_cache(maxsize=4)(self._make_block)

    @property
    def per_epoch(self) -> int:
        """Micro-batches that hold as many rows as all corpora together; weights decide whose rows they are."""
        return -(-sum(self.rows) // self._batch_size)

    def at(self, index: int) -> Batch:
        """Return the ``index``-th micro-batch of the endless stream: (B, context), full.

        Raises:
            IndexError: ``index`` is negative.
        """
        if index < 0:
            raise IndexError(f"a stream of batches begins at 0, not {index}")
        first = index * self._batch_size
        return collate([self._row(*self.place(k)) for k in range(first, first + self._batch_size)], self._pad_id)

    def place(self, k: int) -> tuple[int, int]:
        """Return the corpus of the stream's row ``k`` and which of that corpus's rows it is."""
        block, within = divmod(k, _BLOCK)
        which, before = self._block(block)
        corpus = int(which[within])
        turn = int(before[corpus]) + int((which[:within] == corpus).sum())
        epoch, place = divmod(turn, self.rows[corpus])
        return corpus, int(self._order(corpus, epoch)[place])

    def describe(self) -> dict[str, Any]:
        """Return sizes and shares; ``tokens`` are those of ``per_epoch`` micro-batches."""
        return {
            "tokens": self.per_epoch * self._batch_size * self._context,
            "batches_per_epoch": self.per_epoch,
            "corpora": {
                c.name: {
                    "tokens": c.tokens, "documents": c.documents, "bytes": c.bytes, "rows": rows, "share": share,
                    "bytes_per_token": c.bytes / c.tokens,
                }
                for c, rows, share in zip(self.corpora, self.rows, self.shares, strict=True)
            },
        }  # fmt: skip

    def _row(self, corpus: int, row: int) -> list[Example]:
        start = row * (self._context - 1)
        many = self.corpora[corpus].spans(start, start + self._context)
        name = self.corpora[corpus].name
        return [
            Example(row=d, id=f"{name}:{d}", ids=ids, target=np.ones(len(ids), dtype=np.bool_), offset=offset)
            for d, offset, ids in many
        ]

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, *place])))

    def _counts(self, blocks: int) -> Order:
        """Rows of each corpus in the first ``blocks`` blocks: differences of rounded-down edges, so they add up."""
        edges = np.floor(blocks * _BLOCK * self._edges + 1e-9).astype(np.int64)
        edges[-1] = blocks * _BLOCK
        return np.diff(edges)

    def _make_block(self, block: int) -> tuple[Order, Order]:
        before = self._counts(block)
        which = np.repeat(np.arange(len(self.corpora)), self._counts(block + 1) - before)
        return self._random(0, block).permutation(which), before

    def _make_order(self, corpus: int, epoch: int) -> Order:
        return self._random(1, corpus, epoch).permutation(self.rows[corpus])
