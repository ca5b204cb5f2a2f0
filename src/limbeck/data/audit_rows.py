"""What a data set is by itself: which fields hold text, empty and cut rows, the balance of labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.data.rows import Rows
from limbeck.errors import DataError, nearest

__all__ = ["cut_rows", "empty_rows", "label_balance", "text_fields", "wordy_fields"]

_LOOKED_AT = 1000
_CUT_WORDS = 8  # of fewer words many texts have as many by chance
_ENDINGS = tuple(".!?:;\"'”’)]}>…。！？」」")


def text_fields(rows: Rows, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Fields that hold text to compare.

    Args:
        rows: the data set.
        wanted: these; empty: every field whose values are strings, most of them of three words or more.

    Raises:
        DataError: there is no such field, or no field holds text.
    """
    for name in wanted:
        if name not in rows.columns:
            known = ", ".join(rows.columns)
            raise DataError(f"{rows.source} has no field '{name}' to audit, only {known}{nearest(name, rows.columns)}")
    if wanted:
        return tuple(wanted)
    found = wordy_fields(rows)
    if not found:
        raise DataError(f"no field of {rows.source} holds text of three words or more: name the fields to audit")
    return found


def wordy_fields(rows: Rows) -> tuple[str, ...]:
    """Fields whose values are strings, most of them of three words or more; of the first thousand rows."""
    found = []
    for name in rows.columns:
        values = [row.fields.get(name) for row in rows.rows[:_LOOKED_AT]]
        texts = [v for v in values if isinstance(v, str) and v.strip()]
        if name not in ("id", "split") and texts and 2 * sum(_wordy(v) for v in texts) > len(texts):
            found.append(name)
    return tuple(found)


def _wordy(text: str) -> bool:
    return len(text.split(maxsplit=3)) >= 3 or not text.isascii() and len(text.strip()) >= 3


def empty_rows(rows: Rows, fields: Sequence[str]) -> tuple[str, ...]:
    """Ids of rows in which one of ``fields`` is missing, no text, or white space."""
    return tuple(r.id for r in rows if any(not str(r.fields.get(f) or "").strip() for f in fields))


def cut_rows(rows: Rows, fields: Sequence[str], *, share: float = 0.005, floor_characters: int = 64) -> tuple[str, ...]:
    """Ids of rows that somebody seems to have cut at a fixed length.

    A field looks cut where ``share`` of the values (three different ones at least) have exactly its greatest length, in
    characters or in words, are of ``floor_characters`` or more, and do not end as a sentence does: texts left whole
    differ in length.
    """
    least = max(3, math.ceil(share * len(rows)))
    out: dict[str, None] = {}
    for field in fields:
        values = [(row.id, str(row.fields.get(field) or "")) for row in rows]
        for sizes in ([len(v) for _, v in values], [len(v.split()) for _, v in values]):
            longest = max(sizes, default=0)
            some = [value for value, n in zip(values, sizes, strict=True) if n == longest >= _CUT_WORDS]
            some = [(i, v) for i, v in some if len(v) >= floor_characters and not v.rstrip().endswith(_ENDINGS)]
            if len({v for _, v in some}) >= least:
                out |= dict.fromkeys(i for i, _ in some)
    return tuple(out)


def label_balance(rows: Rows, texts: Sequence[str], most: int = 20) -> dict[str, dict[str, int]]:
    """Field -> label -> rows, commonest first, of every field beside ``texts`` that looks like a label.

    A label field has a value in every row, at most ``most`` different ones, and fewer than half as many as rows.
    """
    out: dict[str, dict[str, int]] = {}
    for name in rows.columns:
        values: list[Any] = [row.fields.get(name) for row in rows]
        if name in (*texts, "id", "split") or any(v is None or isinstance(v, list | Mapping) for v in values):
            continue
        counts = Counter(str(v) for v in values)
        if len(counts) <= most and 2 * len(counts) < len(values):
            out[name] = dict(counts.most_common())
    return out
