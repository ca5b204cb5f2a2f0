"""Rows equal to an earlier one of their own set, found while the rows go by."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.data.audit.find import IndexedRows, Kind
from limbeck.data.audit.match import HOLDERS

__all__ = ["Repeat", "Repeats"]

Repeat = tuple[Kind, int, int, int]
"""Kind, number of the row, number of the first earlier row that equals it, and how many such rows there are."""


class Repeats:
    """What is kept of the rows so far: 24 bytes and the id of each, and no text.

    Rows are equal as ``audit_find.Matcher`` has it: ``exact`` to the character, ``normalised`` but for case,
    punctuation and the order of fields. A row is compared with the first ``HOLDERS`` of those equal to it.
    """

    def __init__(self) -> None:
        self._hashes: NDArray[np.uint64] = np.zeros(0, np.uint64)  # ascending; equal ones in the order of rows
        self._exact: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self._ids, self._ends = bytearray(), array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def id_of(self, number: int) -> str:
        """Return the id of a row that went by."""
        return self._ids[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def find(self, block: IndexedRows) -> list[Repeat]:
        """Take the next rows in; which of them equal an earlier row, in order. Numbers count all rows so far."""
        first = len(self)
        for row in block.rows:
            self._ids += row.id.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._ids))
        hashes, kept = block.row_hashes()
        exact = np.array([_digest(block.row_texts(i)) for i in kept.tolist()], dtype=np.uint64)
        rows = kept + first
        self._take_in(hashes, exact, rows)
        low, high = np.searchsorted(self._hashes, hashes), np.searchsorted(self._hashes, hashes, "right")
        out: list[Repeat] = []
        for i in np.flatnonzero(self._rows[low] < rows).tolist():
            at = slice(low[i], min(high[i], low[i] + HOLDERS))
            earlier = self._rows[at] < rows[i]
            same = earlier & (self._exact[at] == exact[i])
            kind: Kind = "exact" if same.any() else "normalised"
            others = self._rows[at][same if same.any() else earlier]
            out.append((kind, int(rows[i]), int(others[0]), len(others)))
        return out

    def _take_in(self, hashes: NDArray[np.uint64], exact: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        order = np.argsort(hashes, kind="stable")
        at = np.searchsorted(self._hashes, hashes[order], "right")
        self._hashes = np.insert(self._hashes, at, hashes[order])
        self._exact = np.insert(self._exact, at, exact[order])
        self._rows = np.insert(self._rows, at, rows[order])


def _digest(texts: Sequence[str]) -> int:
    """64 bits of a row's texts to the character."""
    whole = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(whole.digest(), "little")
