"""What a data set is by itself: which fields hold text, empty and cut rows, the balance of labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError, nearest

__all__ = ["CutRows", "is_empty", "label_balance", "text_fields", "wordy_fields"]

_LOOKED_AT = 1000
_CUT_WORDS = 8  # of fewer words many texts have as many by chance
_ENDINGS = tuple(".!?:;\"'”’)]}>…。！？」」")


def text_fields(rows: Rows, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return fields that hold text to compare.

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
    """Return fields whose values are strings, most of them of three words or more; of the first thousand rows."""
    found = []
    for name in rows.columns:
        values = [row.fields.get(name) for row in rows.rows[:_LOOKED_AT]]
        texts = [v for v in values if isinstance(v, str) and v.strip()]
        if name not in ("id", "split") and texts and 2 * sum(_wordy(v) for v in texts) > len(texts):
            found.append(name)
    return tuple(found)


def _wordy(text: str) -> bool:
    return len(text.split(maxsplit=3)) >= 3 or not text.isascii() and len(text.strip()) >= 3


def is_empty(row: Row, fields: Sequence[str]) -> bool:
    """Return whether one of ``fields`` is missing, no text, or white space."""
    return any(not str(row.fields.get(f) or "").strip() for f in fields)


class CutRows:
    """Rows that somebody seems to have cut at a fixed length, found while rows go by.

    A field looks cut where ``share`` of the values (three different ones at least) have exactly its greatest length, in
    characters or in words, are of ``floor_characters`` or more, and do not end as a sentence does: texts left whole
    differ in length.

    Args:
        fields: that are looked at.
        share: of all rows.
        floor_characters: shorter values are not taken for cut.
    """

    def __init__(self, fields: Sequence[str], *, share: float = 0.005, floor_characters: int = 64) -> None:
        self._fields, self._share, self._floor = tuple(fields), share, floor_characters
        self._rows = 0
        measures = [(field, unit) for field in self._fields for unit in ("characters", "words")]
        self._longest = dict.fromkeys(measures, 0)
        self._there: dict[tuple[str, str], list[tuple[str, int]]] = {m: [] for m in measures}  # id, hash of the value

    def add(self, row: Row) -> None:
        """Look at the next row."""
        self._rows += 1
        for field in self._fields:
            value = str(row.fields.get(field) or "")
            for unit, size in (("characters", len(value)), ("words", len(value.split()))):
                measure = (field, unit)
                if size > self._longest[measure]:
                    self._longest[measure], self._there[measure] = size, []
                if size < max(self._longest[measure], _CUT_WORDS):
                    continue
                if len(value) >= self._floor and not value.rstrip().endswith(_ENDINGS):
                    self._there[measure].append((row.id, hash(value)))

    def found(self) -> tuple[str, ...]:
        """Return ids of those so far that seem cut."""
        least = max(3, math.ceil(self._share * self._rows))
        out: dict[str, None] = {}
        for some in self._there.values():
            if len({value for _, value in some}) >= least:
                out |= dict.fromkeys(i for i, _ in some)
        return tuple(out)


def label_balance(rows: Rows, texts: Sequence[str], most: int = 20) -> dict[str, dict[str, int]]:
    """Return a mapping field -> label -> rows, commonest first, of every field beside ``texts`` that looks like a
    label.

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
