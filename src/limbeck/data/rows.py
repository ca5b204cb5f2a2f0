"""Rows: what a data set is, whatever it was read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from limbeck.data.border import as_text
from limbeck.errors import DataError, nearest

__all__ = ["Row", "Rows"]


@dataclass(frozen=True, slots=True)
class Row:
    """One item of a data set.

    Attributes:
        id: stable name of the row: it does not change with a limit, an order or the other rows of the source.
        fields: its values by column.
    """

    id: str
    fields: Mapping[str, Any]

    def value(self, field: str, source: str = "") -> Any:
        """Return the value of ``field``.

        Raises:
            DataError: the row has no such field, or nothing in it.
        """
        where = f"row {self.id}" + (f" of {source}" if source else "")
        if field not in self.fields:
            known = ", ".join(self.fields)
            raise DataError(f"{where} has no field '{field}', only {known}{nearest(field, self.fields)}")
        value = self.fields[field]
        if value is None:
            raise DataError(f"{where} has nothing in its field '{field}'; fill it in or leave the row out")
        return value

    def text(self, field: str, source: str = "") -> str:
        """Return the value of ``field`` as text; numbers and booleans are spelled.

        Raises:
            DataError: the row has no such field, nothing in it, or a list, a mapping or bytes.
        """
        value = self.value(field, source)
        text = as_text(value)
        if text is None:
            where = f"row {self.id}" + (f" of {source}" if source else "")
            raise DataError(f"{where} has a {type(value).__name__} in its field '{field}', where text is wanted")
        return text


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """A data set in memory.

    Attributes:
        rows: the rows, in the source's order.
        source: what they were read from, for messages and provenance.
        hash: sha256 of ids and values: equal for equal content, whatever file it came from.
        dropped: ids of rows left out because a required value was missing.
        notes: sentences on how the source was read: the dialect of a table, what was repaired.
    """

    rows: tuple[Row, ...]
    source: str
    hash: str
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Row], source: str, dropped: tuple[str, ...] = (), notes: tuple[str, ...] = ()) -> Rows:
        """Gather ``rows`` and hash their content."""
        kept = tuple(rows)
        digest = hashlib.sha256()
        for row in kept:
            line = json.dumps([row.id, dict(row.fields)], sort_keys=True, ensure_ascii=True, default=str)
            digest.update(line.encode() + b"\n")
        return cls(kept, source, digest.hexdigest(), dropped, notes)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all fields, in the order of first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.fields))

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report: source, content hash, size, and how it was read where notes say so."""
        facts: dict[str, Any] = {"source": self.source, "hash": self.hash, "rows": len(self)}
        return facts | ({"read": list(self.notes)} if self.notes else {})

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        return Rows.of(self.rows[index], self.source) if isinstance(index, slice) else self.rows[index]
