"""Resampling of per-item tables: bootstrap over items, sign flips, shuffled labels; vectorised and seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "flip_labels",
    "item_replicates",
    "shuffle_labels",
]

Floats = NDArray[np.float64]
OfSums = Callable[[Floats], Floats]

_CELLS = 4_000_000  # of a chunk's table of counts, 32 MB


def item_replicates(tables: Sequence[Floats], of_sums: OfSums, resamples: int, random: np.random.Generator) -> Floats:
    """Return bootstrap over items that several tables share (Efron 1979): equal items are drawn for all of them.

    Args:
        tables: (n, k) each, rows of one item at one place in all; one table a seed, or a system.
        of_sums: sums (..., k) -> figures (...).
        resamples: R.
        random: source of the draws.

    Returns:
        (R, len(tables)) figures.
    """
    n = tables[0].shape[0]
    size = max(1, _CELLS // n)
    out = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = random.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)
        out.append(np.stack([of_sums(counts @ table) for table in tables], axis=1))
    return np.concatenate(out)


def flip_labels(a: Floats, b: Floats, of_sums: OfSums, resamples: int, random: np.random.Generator) -> float:
    """Run a paired permutation test: swap the two systems' rows item by item.

    Args:
        a: (n, k) table of one system.
        b: (n, k) of the other, the same items in the same order.
        of_sums: sums (..., k) -> figures (...).
        resamples: how many of the 2**n swaps are drawn; all of them are walked where they are no more.
        random: source of the draws.

    Returns:
        Two-sided p: the share of swaps whose difference is at least as far from 0. Where swaps are drawn, the one
        observed counts among them (Phipson and Smyth 2010), so that p is never 0.
    """
    n, total_a, total_b, gap = a.shape[0], a.sum(axis=0), b.sum(axis=0), b - a
    observed = abs(float(of_sums(total_b) - of_sums(total_a)))
    exact = n < 63 and 2**n <= resamples
    count, as_far, size = 2**n if exact else resamples, 0, max(1, _CELLS // n)
    for start in range(0, count, size):
        rows = min(size, count - start)
        if exact:
            swaps = (np.arange(start, start + rows)[:, None] >> np.arange(n)) & 1
        else:
            swaps = random.integers(2, size=(rows, n))
        moved = swaps.astype(np.float64) @ gap
        difference = np.abs(of_sums(total_b - moved) - of_sums(total_a + moved))
        as_far += int((difference >= observed * (1 - 1e-9)).sum())
    return as_far / count if exact else (as_far + 1) / (count + 1)


def shuffle_labels(a: Floats, b: Floats, of_sums: OfSums, resamples: int, random: np.random.Generator) -> float:
    """Run a permutation test of two systems measured on different items: deal all items out anew; two-sided p."""
    both, n = np.concatenate((a, b)), a.shape[0]
    total = both.sum(axis=0)
    observed = abs(float(of_sums(b.sum(axis=0)) - of_sums(a.sum(axis=0))))
    as_far, size = 0, max(1, _CELLS // both.shape[0])
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        rank = random.random((rows, both.shape[0])).argsort(axis=1).argsort(axis=1)
        first = (rank < n).astype(np.float64) @ both
        difference = np.abs(of_sums(total - first) - of_sums(first))
        as_far += int((difference >= observed * (1 - 1e-9)).sum())
    return (as_far + 1) / (resamples + 1)
