"""Packing: several documents in one row of at most ``context`` tokens, none of them split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack"]


def pack(
    lengths: NDArray[np.int64], order: Sequence[int] | NDArray[np.int64], context: int, window: int
) -> list[list[int]]:
    """Group documents into rows by best fit, longest first, within windows of ``order``.

    Best fit decreasing needs at most 11/9 of the fewest rows possible, plus one (Johnson 1973). Windows keep documents
    that lie far apart in ``order`` apart, so a shuffled order gives mixed rows.

    Args:
        lengths: (n,) tokens of each document, none above ``context``.
        order: which documents, and in which order the windows take them.
        context: tokens of a row.
        window: documents considered at a time.

    Returns:
        Documents of each row. Each document is in exactly one row.
    """
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        part = np.asarray(order[start : start + window], dtype=np.int64)
        part = part[np.argsort(-lengths[part], kind="stable")]
        rows += _best_fit(part.tolist(), lengths[part].tolist(), context)
    return rows


def _best_fit(documents: list[int], lengths: list[int], context: int) -> list[list[int]]:
    by_room: list[list[list[int]]] = [[] for _ in range(context + 1)]  # open rows by the tokens they still hold
    open_rooms = 0  # bit r is set where by_room[r] has a row: the least sufficient room is found without a search
    rows: list[list[int]] = []
    for document, length in zip(documents, lengths, strict=True):
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                open_rooms ^= 1 << room
        else:
            room, row = context, []
            rows.append(row)
        row.append(document)
        by_room[room - length].append(row)
        open_rooms |= 1 << (room - length)
    return rows
