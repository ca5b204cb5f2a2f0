"""Who shares hashes with whom: a sorted index of (hash, owner), and MinHash bands for near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.data.audit.text import mix, odd_numbers

__all__ = ["BANDS", "HOLDERS", "ROWS", "HashIndex", "Shared", "bands", "jaccard", "signatures"]

Hashes = NDArray[np.uint64]
Index = NDArray[np.int64]

BANDS, ROWS = 32, 4
"""A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^4)^32: 0.9998 at 0.7, 0.87 at 0.5."""

HOLDERS = 64
"""Of a hash that more rows than this hold, only the first are paired."""

_FILTER_BITS = 22


@dataclass(frozen=True, slots=True)
class Shared:
    """Pairs that share something.

    Attributes:
        left: (p,) owners that were asked about.
        right: (p,) owners in the index.
        count: (p,) distinct hashes they share.
    """

    left: Index
    right: Index
    count: Index


class HashIndex:
    """Owners of hashes.

    Args:
        hashes: (n,) 64-bit hashes.
        owners: (n,) who holds each; a hash held twice by one owner counts once.
        holders: of a hash that more than this many hold, only the first are paired.
    """

    def __init__(self, hashes: Hashes, owners: Index, holders: int = HOLDERS) -> None:
        self.hashes, self.owners = _distinct(hashes, owners)
        self.sizes = np.bincount(self.owners)
        self._holders = holders
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)  # spares most look-ups where little is shared
        self._filter[self.hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def pairs(self, hashes: Hashes, owners: Index) -> Shared:
        """Return every pair of one of ``owners`` and an owner here that share a hash."""
        hit = self._filter[hashes >> np.uint64(64 - _FILTER_BITS)]
        hashes, owners = _distinct(hashes[hit], owners[hit])
        low = np.searchsorted(self.hashes, hashes, "left")
        many = np.minimum(np.searchsorted(self.hashes, hashes, "right") - low, self._holders)
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        left, right = np.repeat(owners, many), self.owners[np.repeat(low, many) + within]
        width = int(self.owners.max()) + 1 if self.owners.size else 1
        keys, count = np.unique(left * width + right, return_counts=True)
        return Shared(keys // width, keys % width, count)


def _distinct(hashes: Hashes, owners: Index) -> tuple[Hashes, Index]:
    """Sorted by hash, then owner; each pair once."""
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    kept = np.ones(len(hashes), dtype=np.bool_)
    kept[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[kept], owners[kept]


def signatures(shingles: Hashes, owners: Index, count: int) -> Hashes:
    """Return MinHash signatures (Broder 1997): two agree at each place with probability the sets' Jaccard similarity.

    Args:
        shingles: (s,) well-mixed hashes.
        owners: (s,) ascending owner of each.
        count: number of owners, n.

    Returns:
        (n, BANDS * ROWS); rows of owners without a shingle hold the greatest number throughout.
    """
    out = np.full((count, BANDS * ROWS), np.iinfo(np.uint64).max, dtype=np.uint64)
    if not shingles.size:
        return out
    starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
    held = owners[starts]
    for column, (factor, shift) in enumerate(
        zip(odd_numbers(BANDS * ROWS, 1), odd_numbers(BANDS * ROWS, 2), strict=True)
    ):
        out[held, column] = np.minimum.reduceat(shingles * factor + shift, starts)
    return out


def bands(signature: Hashes, owners: Index) -> tuple[Hashes, Index]:
    """Return one hash a band: two owners that share any are candidates (Leskovec et al., Mining of Massive Datasets,
    3.4).

    Args:
        signature: (n, BANDS * ROWS).
        owners: (n,) who each row belongs to.

    Returns:
        Hashes (n * BANDS,) and owners (n * BANDS,).
    """
    cut = signature.reshape(len(signature), BANDS, ROWS) * odd_numbers(ROWS, 3)
    hashes = mix(cut.sum(axis=2, dtype=np.uint64) + odd_numbers(BANDS, 4))
    return hashes.reshape(-1), np.repeat(owners, BANDS)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Return the size of the intersection over that of the union of two sets; 0 for two empty ones."""
    a, b = np.unique(a), np.unique(b)
    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 0.0
