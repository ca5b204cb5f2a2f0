"""Readers: a path, a toy corpus or a Hub data set -> rows with stable ids, or documents one after the other."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.data.border import as_text, settle
from limbeck.data.dialect import Dialect
from limbeck.data.rows import Row, Rows
from limbeck.data.tables import iter_jsonl, iter_parquet, iter_text, read_csv, read_json
from limbeck.data.toy.table import toy_rows
from limbeck.errors import DataError, LimbeckWarning, nearest

__all__ = ["Dialect", "RepairedWarning", "Row", "Rows", "documents", "read"]

Fields = dict[str, Any]
Place = tuple[int, Fields]  # line or index of a row, and its values
Table = list[Place]

_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_TEXTS = (".txt", ".raw")  # WikiText calls its untouched text .raw
_HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?(?::([\w.-]+))?")
_NAMED = 5  # rows in a sentence


class RepairedWarning(LimbeckWarning):
    """A reader changed what could not be kept, such as half of a surrogate pair."""


@dataclass
class _Source:
    """A source as it is read.

    Attributes:
        places: its rows, before the border.
        stem: of the rows' ids.
        empties: what counts as no value.
        about: how it was read, in words.
        repaired: places of rows in which half of a surrogate pair was replaced; filled while ``settled`` goes on.
    """

    places: Iterator[Place]
    stem: str
    empties: tuple[Any, ...] = (None,)
    about: str = ""
    repaired: list[int] = field(default_factory=list)

    def settled(self, source: str) -> Iterator[Place]:
        """Yield rows with their values normalised (see ``border.settle``)."""
        for place, fields in self.places:
            try:
                values, halves = settle(fields)
            except ValueError as error:
                raise DataError(f"row {place} of {source} cannot be read: {error}") from None
            if halves:
                self.repaired.append(place)
            yield place, values

    def notes(self, source: str) -> tuple[str, ...]:
        """Return sentences on how it was read, for the report."""
        told = [f"{source}: {self.about}"] if self.about else []
        if self.repaired:
            some = ", ".join(f"{self.stem}:{place}" for place in self.repaired[:_NAMED])
            more = ", ..." if len(self.repaired) > _NAMED else ""
            told.append(f"{source}: half of a surrogate pair in {len(self.repaired)} rows became U+FFFD ({some}{more})")
        return tuple(told)


def read(
    source: str,
    *,
    required: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    separator: str = "<|endoftext|>",
    dialect: Dialect | None = None,
    missing: Literal["error", "drop"] = "error",
) -> Rows:
    """Read a data set.

    Args:
        source: a ``.txt`` or ``.raw`` (one document between separators, field ``text``), ``.csv``, ``.tsv``,
            ``.json`` (a list of objects or of strings), ``.jsonl`` or ``.parquet`` file; ``toy:NAME``; or a Hub id,
            ``owner/name``, ``owner/name:config``, or ``owner/name@REVISION:config`` for a branch, a tag or a commit,
            read through ``datasets``.
        required: fields that every row must have a value for. An empty cell of a CSV is no value; an empty string of a
            JSON or parquet file is one.
        columns: our field <- their column; columns not named keep their names.
        limit: only the first rows; ids and values are those of the whole.
        split: of a Hub set (default ``train``); of a file with a column ``split``, the rows that have this value.
        separator: line between the documents of a text file. Documents are stripped of white space around them; a
            file without separator is one document, kept to the byte.
        dialect: delimiter and quotes of a ``.csv`` or ``.tsv`` file; None: found and checked.
        missing: what to do with rows that lack a required value: an error that names them, or leave them out and name
            them in ``Rows.dropped``.

    Returns:
        Rows whose ids are the file's ``id`` column where that is unique, else ``<stem>:<line or index>``.

    Raises:
        DataError: no such file, column, split or toy; an empty, undecodable or malformed file; a missing value; a list
            or mapping in a required field.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows leaves nothing of {source}; give at least 1")
    if source.startswith("toy:"):
        rows = _toy(source, split)
        table, ids = [(i, dict(row.fields)) for i, row in enumerate(rows)], [row.id for row in rows]
        found = _Source(iter(()), source)
    else:
        found = _places(source, split, separator, dialect)
        table = list(found.settled(source))
        ids = _ids(table, found.stem)
    if not table:
        raise DataError(f"{source} holds no rows")
    known = list(dict.fromkeys(name for _, fields in table for name in fields))
    _check_columns(source, known, required, columns or {})
    table, ids = table[:limit], ids[:limit]
    renamed = [_rename(fields, columns or {}) for _, fields in table]
    _check_texts(source, ids, renamed, required)
    lacking = [any(fields.get(name) in found.empties for name in required) for fields in renamed]
    dropped = tuple(name for name, bad in zip(ids, lacking, strict=True) if bad)
    if dropped and missing == "error":
        raise _missing_values(source, dropped, len(ids), required)
    if len(dropped) == len(ids):
        raise DataError(f"every row of {source} lacks a value in {_quoted(required)}")
    kept = (Row(i, fields) for i, fields, bad in zip(ids, renamed, lacking, strict=True) if not bad)
    return Rows.of(kept, source, dropped, found.notes(source))


def documents(
    source: str,
    *,
    column: str = "text",
    split: str | None = None,
    separator: str = "<|endoftext|>",
    dialect: Dialect | None = None,
    limit: int | None = None,
) -> Iterator[str]:
    """Yield values of one column, in order, without the data set in memory.

    Text, JSON lines and parquet are read a piece at a time; a Hub set row by row from the cache of ``datasets``, which
    holds the whole after the first time; other formats are read as a whole.

    Args:
        source: as of ``read``.
        column: that holds the document.
        split: as of ``read``.
        separator: as of ``read``.
        dialect: as of ``read``.
        limit: only the first documents.

    Raises:
        DataError: as ``read``, when the place is reached; a row lacks a value (of parquet such rows are left out).
    """
    if source.startswith("toy:"):
        found = _Source(((i, dict(row.fields)) for i, row in enumerate(_toy(source, split))), source)
    else:
        only = [column] if split is None else [column, "split"]
        found = _places(source, split, separator, dialect, only)
    given, nulls = 0, Path(source).suffix.lower() == ".parquet"
    for place, fields in found.settled(source):
        if given == limit:
            break
        value = fields.get(column)
        if value in found.empties:
            if nulls:
                continue
            _check_columns(source, list(fields), (column,), {})
            raise DataError(f"row {place} of {source} lacks a value in '{column}'; fill it in, or remove the row")
        given += 1
        yield Row(str(place), fields).text(column, source)
    if not given:
        raise DataError(f"{source} holds no rows")
    if found.repaired:
        warnings.warn(found.notes(source)[-1], RepairedWarning, stacklevel=2)


def _toy(source: str, split: str | None) -> Rows:
    if split is not None:
        raise DataError(f"{source} has no split '{split}'; toy corpora are cut by fractions")
    return toy_rows(source.removeprefix("toy:"))


def _places(
    source: str, split: str | None, separator: str, dialect: Dialect | None, only: Sequence[str] = ()
) -> _Source:
    """Return a file or Hub set to read; of parquet the columns ``only``."""
    if not source.strip():
        raise DataError("a data source has an empty name; name a file (is a shell variable unset?)")
    path = Path(source)
    kind = path.suffix.lower()
    try:
        path = path.expanduser()
        is_folder, is_file, there = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, one with a zero byte, ~nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data file {source[:80]!r} cannot be opened: {reason}") from None
    if is_folder:
        raise DataError(f"{source} is a folder; name one of its files")
    if is_file:
        if kind not in _TEXTS and kind not in _ENDINGS:
            endings = ", ".join([*_TEXTS, *_ENDINGS])
            raise DataError(
                f"{source} does not end in one of {endings}, so its format is unknown; rename or convert it"
            )
        if kind not in (".csv", ".tsv") and dialect not in (None, Dialect()):
            raise DataError(f"{source} is no table of cells: leave out delimiter and quotes")
        found = _file(path, kind, separator, dialect or Dialect(), only)
        if split is not None:
            found.places = _pick(source, found.places, split)
        return found
    if there:
        raise DataError(f"{source} is no regular file; write its content to one")
    if kind in _TEXTS or kind in _ENDINGS or not _HUB_ID.fullmatch(source):
        hint = " (a recipe fills in no variables)" if "$" in source else ""
        raise DataError(f"data file {source} does not exist; check the path{hint}")
    return _Source(_hub(source, split or "train"), source)


def _file(path: Path, kind: str, separator: str, dialect: Dialect, only: Sequence[str]) -> _Source:
    if kind in _TEXTS:
        return _Source(iter_text(path, separator), path.stem)
    if kind in (".csv", ".tsv"):
        table, about = read_csv(path, dialect, "\t" if kind == ".tsv" else None)
        return _Source(iter(table), path.stem, (None, ""), about)
    if kind == ".json":
        table, about = read_json(path)
        return _Source(iter(table), path.stem, about="" if about == "JSON list" else about)
    return _Source(iter_jsonl(path) if kind == ".jsonl" else iter_parquet(path, only), path.stem)


def _pick(source: str, places: Iterator[Place], split: str) -> Iterator[Place]:
    """Rows of one split.

    Raises:
        DataError: at the end, where no row was of it.
    """
    found: dict[str, None] = {}
    for place, fields in places:
        if "split" in fields:
            name = str(fields["split"])
            found[name] = None
            if name == split:
                yield place, fields
    if not found:
        raise DataError(f"{source} has no column 'split' to choose '{split}' by; leave the split out")
    if split not in found:
        raise DataError(f"{source} has no split '{split}', only {', '.join(found)}{nearest(split, found)}")


def _hub(source: str, split: str) -> Iterator[Place]:
    """Rows of a Hub set, one at a time from the cache of ``datasets``, where the whole lies after the first time."""
    import datasets  # seconds to import, and wanted by no other reader

    found = _HUB_ID.fullmatch(source)
    assert found is not None
    name, revision, config = found.groups()
    pinned = {"revision": revision} if revision else {}
    try:
        for i, row in enumerate(datasets.load_dataset(name, config, split=split, **pinned)):
            yield i, dict(row)
    except Exception as error:  # the library's failures share no class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{source} is no file here, and as a Hub data set its split '{split}' cannot be read: {reason}"
        ) from None


def _ids(table: Table, stem: str) -> list[str]:
    """Return the ``id`` column where every row has another one, else stem and place."""
    own = [fields.get("id") for _, fields in table]
    if None not in own and "" not in own and len({str(i) for i in own}) == len(own):
        return [str(i) for i in own]
    return [f"{stem}:{place}" for place, _ in table]


def _check_columns(source: str, known: list[str], required: Sequence[str], columns: Mapping[str, str]) -> None:
    there = ", ".join(name or "(no name)" for name in known)
    for ours, theirs in columns.items():
        if theirs not in known:
            hint = nearest(theirs, known)
            raise DataError(f"{source} has no column '{theirs}' (wanted for '{ours}'); its columns are {there}{hint}")
    taken = set(columns.values())
    have = [*columns, *(name for name in known if name not in taken)]
    for name in required:
        if name not in have:
            raise DataError(
                f"{source} has no column '{name}'; its columns are {there}{nearest(name, have)}"
                " (a column mapping can rename one)"
            )


def _check_texts(source: str, ids: list[str], table: list[Fields], required: Sequence[str]) -> None:
    """Refuse a list, a mapping or bytes where text, a number or a class is required."""
    for name in required:
        for i, fields in zip(ids, table, strict=True):
            if fields.get(name) is not None and as_text(fields[name]) is None:
                kind = type(fields[name]).__name__
                raise DataError(
                    f"row {i} of {source} has a {kind} in its field '{name}', where text is wanted; flatten it, or "
                    "name another column by a column mapping"
                )


def _rename(fields: Fields, columns: Mapping[str, str]) -> Fields:
    taken = set(columns.values())
    kept = {name: value for name, value in fields.items() if name not in taken}
    return kept | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}


def _missing_values(source: str, dropped: tuple[str, ...], total: int, required: Sequence[str]) -> DataError:
    some = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
    return DataError(
        f"{len(dropped)} of {total} rows of {source} lack a value in {_quoted(required)} ({some}); "
        "fill them in, or remove them"
    )


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
