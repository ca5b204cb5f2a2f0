"""Best fit decreasing, written with a search over all open rows."""

from __future__ import annotations

from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Lengths in each row: the longest first, each into the fullest row that still holds it."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= context]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows
