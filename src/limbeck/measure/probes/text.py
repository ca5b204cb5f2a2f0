"""Scorers of token sequences: runs they share, loops, repeated n-grams. Pure functions, each with a plain meaning."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["common_run", "loop_tokens", "repeated_share"]

Ids = Sequence[int]


def common_run(a: Ids, b: Ids) -> int:
    """Return tokens of the longest run that stands in both, by dynamic programming over ``len(a) * len(b)`` cells."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if x == y else 0
            best = max(best, row[j])
    return best


def loop_tokens(ids: Ids, *, longest_period: int = 32, repeats: int = 3) -> int:
    """Return tokens at the end of ``ids`` that only repeat one period, 0 where they do not.

    Args:
        ids: what was written, without an end token.
        longest_period: in tokens.
        repeats: a tail counts from so many whole periods on.

    Returns:
        The longest such tail, partial first period included.
    """
    best = 0
    for period in range(1, min(longest_period, len(ids) // repeats) + 1):
        tail = period
        while tail < len(ids) and ids[-tail - 1] == ids[len(ids) - 1 - tail + period]:
            tail += 1
        if tail >= repeats * period:
            best = max(best, tail)
    return best


def repeated_share(texts: Sequence[Ids], order: int = 4) -> tuple[float, int]:
    """Return 1 - distinct n-grams per n-gram, each text's counted apart (rep-n of Welleck et al. 2020), and all
    n-grams.
    """
    distinct = total = 0
    for ids in texts:
        grams = [tuple(ids[i : i + order]) for i in range(len(ids) - order + 1)]
        distinct, total = distinct + len(set(grams)), total + len(grams)
    return (1 - distinct / total if total else 0.0), total
