"""The Pareto front: what no other arm beats on both quality and cost."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.measure.statistic import Better

__all__ = ["front"]


def front(points: Sequence[tuple[float, float]], better: Better) -> list[int]:
    """Return the indices of the points that no other dominates, from the cheapest to the dearest.

    One point dominates another if it costs no more, is no worse, and is not equal in both. Equal points therefore stand
    on the front together. It is drawn through the figures themselves: whether two neighbours differ, their
    intervals say.

    Args:
        points: (cost, figure) of each arm, finite; a lower cost is better.
        better: direction in which a figure is better.
    """
    sign = 1.0 if better == "lower" else -1.0
    order = sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1]))
    kept: list[int] = []
    for i in order:  # cheapest first, of equal cost the best first: only the last one kept can dominate what follows
        if not kept or sign * points[i][1] < sign * points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
