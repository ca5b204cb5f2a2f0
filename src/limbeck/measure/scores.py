"""Per-item scores: one row an item, keyed by its id. All statistics read these."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError, nearest
from limbeck.storage import write_text

__all__ = ["Scores", "align"]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What one evaluation found, item by item.

    A figure that is a ratio keeps numerator and denominator as two columns (summed nats and tokens), never the mean
    alone: a mean of means is not the figure of the whole set.

    Attributes:
        ids: unique id of each item.
        columns: name -> (n,) float64, one number an item.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, NDArray[np.float64]]

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError("an evaluation without items has no scores: its data set is empty")
        if len(set(self.ids)) != len(self.ids):
            twice = next(i for n, i in enumerate(self.ids) if i in self.ids[:n])
            raise DataError(f"item id '{twice}' has two rows of scores: ids must be unique")
        for name, column in self.columns.items():
            if column.shape != (len(self.ids),):
                raise DataError(f"score '{name}' has {column.shape[0]} values for {len(self.ids)} items")
            bad = np.flatnonzero(~np.isfinite(column))
            if bad.size:
                raise DataError(f"score '{name}' of item '{self.ids[bad[0]]}' is {column[bad[0]]}: the model diverged")

    @classmethod
    def of(cls, ids: Iterable[str], **columns: Sequence[float] | NDArray[Any]) -> Scores:
        """Build from one sequence of numbers for each metric.

        Raises:
            DataError: no items, an id twice, columns of unequal length, or a number that is not finite.
        """
        return cls(tuple(ids), {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()})

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]], where: str = "the scores") -> Scores:
        """Build from mappings that hold ``id`` and the same numbers each.

        Raises:
            DataError: a row lacks its id or a score, or holds one that is no number.
        """
        ids: list[str] = []
        values: dict[str, list[float]] = {}
        for number, row in enumerate(rows, start=1):
            if "id" not in row:
                raise DataError(f"row {number} of {where} has no 'id'")
            names = [name for name in row if name != "id"]
            if number == 1:
                values = {name: [] for name in names}
            if set(names) != set(values):
                odd = sorted(set(names) ^ set(values))
                raise DataError(f"row {number} of {where} differs from the first in having or lacking '{odd[0]}'")
            ids.append(str(row["id"]))
            for name in names:
                if isinstance(row[name], bool) or not isinstance(row[name], int | float):
                    raise DataError(f"'{name}' in row {number} of {where} is no number (got {row[name]!r})")
                values[name].append(float(row[name]))
        return cls.of(ids, **values)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        try:
            return self.columns[name]
        except KeyError:
            known = ", ".join(self.columns)
            raise DataError(f"there is no score '{name}' among {known}{nearest(name, self.columns)}") from None

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping an item, ``id`` first."""
        columns = {name: column.tolist() for name, column in self.columns.items()}
        return [{"id": i} | {name: c[n] for name, c in columns.items()} for n, i in enumerate(self.ids)]

    def select(self, ids: Iterable[str]) -> Scores:
        """Return the rows of these items, in this order."""
        place = {i: n for n, i in enumerate(self.ids)}
        kept = tuple(ids)
        index = np.array([place[i] for i in kept], dtype=np.intp)
        return Scores(kept, {name: column[index] for name, column in self.columns.items()})

    def join(self, other: Scores) -> Scores:
        """Put the columns of another evaluation of the same items beside these.

        Raises:
            DataError: the items differ, or a column is in both.
        """
        mine, theirs = align(self, other)
        both = sorted(set(mine.columns) & set(theirs.columns))
        if both:
            raise DataError(f"score '{both[0]}' was measured twice for the same items: rename one")
        return Scores(mine.ids, {**mine.columns, **theirs.columns})

    def write(self, path: Path) -> None:
        """Write JSON lines, one item a line, atomically.

        Raises:
            StorageError: the system refused.
        """
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows()))

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read what ``write`` wrote.

        Raises:
            DataError: the file is missing, is not JSON lines, or holds no valid scores.
        """
        rows = []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"scores file {path} cannot be read: {error}") from None
        lines = text.split("\n")  # not splitlines: JSON leaves U+0085 and U+2028 as they are
        for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"line {number} of scores file {path} is not a JSON object")
            rows.append(row)
        return cls.of_rows(rows, str(path))


def align(a: Scores, b: Scores, *, intersect: bool = False) -> tuple[Scores, Scores]:
    """Bring two evaluations into the same order of items, that of ``a``.

    Args:
        a: one evaluation.
        b: another, of the same items.
        intersect: compare the items that both have, instead of refusing sets that differ.

    Raises:
        DataError: the items differ (names some), or none is shared.
    """
    if a.ids == b.ids:
        return a, b
    in_a, in_b = set(a.ids), set(b.ids)
    shared = [i for i in a.ids if i in in_b]
    if intersect:
        if not shared:
            raise DataError("the two evaluations share no item: they cannot be paired")
        return a.select(shared), b.select(shared)
    lacking = [i for i in a.ids if i not in in_b]
    more = [i for i in b.ids if i not in in_a]
    sides = (("first", lacking), ("second", more))
    parts = [f"{len(ids)} only in the {which} ({_some(ids)})" for which, ids in sides if ids]
    if parts:
        raise DataError(f"the evaluations differ in items, {', '.join(parts)}: compare the shared ones, or unpaired")
    return a, b.select(a.ids)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(f"'{i}'" for i in ids[:3]) + (", ..." if len(ids) > 3 else "")
