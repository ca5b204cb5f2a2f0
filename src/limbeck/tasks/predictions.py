"""Predictions files: JSON by item id, and the two formats of the CS 224N default project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from limbeck.errors import DataError
from limbeck.storage import write_text

__all__ = ["read_labels", "read_numbered", "read_texts", "same_items", "write_labels", "write_numbered"]

_NUMBER = re.compile(r"\n\s*(\d+)\s*\n")


def read_texts(path: Path) -> dict[str, str]:
    """Read a JSON object of texts by item id.

    Raises:
        DataError: the file is missing or is no such object.
    """
    try:
        found = json.loads(_read(path))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise DataError(f"predictions file {path} is no JSON object of texts by item id")
    return found


def write_labels(pairs: Iterable[tuple[str, str]], path: Path, title: str) -> None:
    """Write the course's classification format: a header of ``id`` and ``title``, a tab between, then ``ID, LABEL``.

    Raises:
        StorageError: the disk refused.
    """
    write_text(path, f"id \t {title} \n" + "".join(f"{name}, {label} \n" for name, label in pairs))


def read_labels(path: Path, title: str) -> dict[str, str]:
    """Read the course's classification format.

    Raises:
        DataError: the file is missing, has another header, a line without a comma, or an id twice.
    """
    header, *lines = _read(path).splitlines() or [""]
    if header.split() != ["id", title]:
        raise DataError(f"predictions file {path} begins with '{header.strip()}', not with 'id {title}'")
    out: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        name, comma, label = (part.strip() for part in line.partition(","))
        if not comma or not name or not label or name in out:
            raise DataError(f"line {number} of predictions file {path} is no 'id, label', or its id stands twice")
        out[name] = label
    return out


def write_numbered(poems: Iterable[tuple[int, str]], path: Path) -> None:
    """Write the course's sonnet format: a title, then the number and text of each poem.

    Raises:
        StorageError: the disk refused.
    """
    parts = ["--Generated Sonnets-- \n\n", *(f"\n{number}\n{text.strip()}\n\n" for number, text in poems)]
    write_text(path, "".join(parts))


def read_numbered(path: Path) -> dict[int, str]:
    """Read the course's sonnet format: number -> text, by the pattern with which the course itself cuts it.

    Raises:
        DataError: the file is missing, holds no number, or one twice.
    """
    _, *pieces = _NUMBER.split(_read(path))
    out: dict[int, str] = {}
    for number, text in zip(pieces[::2], pieces[1::2], strict=True):
        if int(number) in out:
            raise DataError(f"poem {number} stands twice in predictions file {path}")
        out[int(number)] = text.strip()
    if not out:
        raise DataError(f"predictions file {path} holds no numbered poem")
    return out


def same_items(found: Mapping[str, str], wanted: Sequence[str], path: Path) -> dict[str, str]:
    """Bring predictions into the order of the items.

    Raises:
        DataError: they are of other items: another split, or not all of this one.
    """
    missing, extra = [i for i in wanted if i not in found], sorted(set(found) - set(wanted))
    if missing or extra:
        parts = [
            f"{len(ids)} {what} ('{ids[0]}')"
            for what, ids in (("are missing", missing), ("are no items of it", extra))
            if ids
        ]
        raise DataError(f"predictions file {path} is of another split: of {len(wanted)} items, {', and '.join(parts)}")
    return {i: found[i] for i in wanted}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"predictions file {path} cannot be read: {error}") from None
