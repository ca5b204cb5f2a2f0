"""Splits that do not leak: a row's part depends on a hash of its question alone."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from itertools import accumulate

from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError, nearest

__all__ = ["normalise", "split_rows"]


def normalise(value: object) -> str:
    """Return ``value`` as text with compatibility forms unified, case folded and white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())


def split_rows(rows: Rows, by: str | None, fractions: Mapping[str, float], salt: str = "limbeck") -> dict[str, Rows]:
    """Cut ``rows`` into parts by a hash of one column.

    Rows whose normalised value is equal go to one part, so no test question is met in training under another spelling.
    The part depends on that value and the arguments alone: not on the order, not on the other rows, not on who asks
    (a teacher and its student see the same test set).

    Args:
        rows: what to cut.
        by: the column, the question for example; None: all fields but ``id`` together.
        fractions: name of each part and its share; they add up to 1 (or 100). Shares are of the distinct values, and
            met on average.
        salt: another salt gives another cut.

    Returns:
        The parts by name, each in the order of ``rows``.

    Raises:
        DataError: shares that do not add up, no such column, or a part that got no row.
    """
    total = math.fsum(fractions.values())
    if not all(share > 0 for share in fractions.values()) or not any(math.isclose(total, x) for x in (1, 100)):
        given = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
        raise DataError(f"the shares of a split must be positive and add up to 1 or 100, not {given}")
    if by is not None and by not in rows.columns:
        known = ", ".join(rows.columns)
        raise DataError(f"{rows.source} has no column '{by}' to split by, only {known}{nearest(by, rows.columns)}")
    borders = [edge / total for edge in accumulate(fractions.values())]
    borders[-1] = 1.0  # rounding must not leave a gap at the end
    parts: dict[str, list[Row]] = {name: [] for name in fractions}
    names = list(fractions)
    for row in rows:
        place = _place(_key(row, by, rows.source), salt)
        parts[names[next(i for i, edge in enumerate(borders) if place < edge)]].append(row)
    for name, part in parts.items():
        if not part:
            share = fractions[name] / total
            distinct = len({_key(row, by, rows.source) for row in rows})
            if distinct < max(len(parts), 2):
                alike = f"in '{by}'" if by is not None else "in all fields"
                raise DataError(
                    f"the {len(rows)} rows of {rows.source} hold {distinct} different value{'s' * (distinct != 1)} "
                    f"{alike}, which cannot be parted into {len(parts)} without a leak; name other "
                    "rows for validation and test"
                )
            raise DataError(
                f"the part '{name}' ({share:.0%}) of {rows.source} got none of its {len(rows)} rows; "
                "give it a larger share or more data"
            )
    return {name: Rows.of(part, f"{rows.source}[{name}]", notes=rows.notes) for name, part in parts.items()}


def _key(row: Row, by: str | None, source: str) -> str:
    if by is not None:
        return normalise(row.text(by, source))
    content = sorted(name for name in row.fields if name != "id")
    return "\x1e".join(f"{name}\x1f{normalise(row.fields[name])}" for name in content)


def _place(key: str, salt: str) -> float:
    """Uniform number in [0, 1) of 53 bits, from sha256."""
    digest = hashlib.sha256(f"{salt}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
