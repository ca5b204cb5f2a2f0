"""Readers: a path, a toy corpus or a Hub data set -> rows with stable ids, or documents one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.data.rows import Row, Rows
from limbeck.data.tables import iter_jsonl, iter_parquet, iter_text, read_csv, read_json
from limbeck.data.toy.table import toy_rows
from limbeck.errors import DataError, nearest

__all__ = ["Row", "Rows", "documents", "read"]

Fields = dict[str, Any]
Place = tuple[int, Fields]  # line or index of a row, and its values
Table = list[Place]

_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Place]]] = {
    ".csv": lambda path, _: iter(read_csv(path, None)),
    ".tsv": lambda path, _: iter(read_csv(path, "\t")),
    ".json": lambda path, _: iter(read_json(path)),
    ".jsonl": lambda path, _: iter_jsonl(path),
    ".parquet": iter_parquet,
}
_TEXTS = (".txt", ".raw")  # WikiText calls its untouched text .raw
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def read(
    source: str,
    *,
    required: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    separator: str = "<|endoftext|>",
    missing: Literal["error", "drop"] = "error",
) -> Rows:
    """Read a data set.

    Args:
        source: a ``.txt`` or ``.raw`` (one document between separators, field ``text``), ``.csv``, ``.tsv``,
            ``.json`` (a list of objects or of strings), ``.jsonl`` or ``.parquet`` file; ``toy:NAME``; or a Hub id,
            ``owner/name`` or ``owner/name:config``, read through ``datasets``.
        required: fields that every row must have a value for. An empty cell of a CSV is no value; an empty string of a
            JSON or parquet file is one.
        columns: our field <- their column; columns not named keep their names.
        limit: only the first rows; ids and values are those of the whole.
        split: of a Hub set (default ``train``); of a file with a column ``split``, the rows that have this value.
        separator: line between the documents of a text file. Documents are stripped of white space around them; a
            file without separator is one document, kept to the byte.
        missing: what to do with rows that lack a required value: an error that names them, or leave them out and name
            them in ``Rows.dropped``.

    Returns:
        Rows whose ids are the file's ``id`` column where that is unique, else ``<stem>:<line or index>``.

    Raises:
        DataError: no such file, column, split or toy; an empty, undecodable or malformed file; a missing value.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows leaves nothing of {source}; give at least 1")
    if source.startswith("toy:"):
        rows = _toy(source, split)
        table, ids = [(i, dict(row.fields)) for i, row in enumerate(rows)], [row.id for row in rows]
        empties: tuple[Any, ...] = (None,)
    else:
        places, stem, empties = _places(source, split, separator)
        table = list(places)
        ids = _ids(table, stem)
    if not table:
        raise DataError(f"{source} holds no rows")
    known = list(dict.fromkeys(name for _, fields in table for name in fields))
    _check_columns(source, known, required, columns or {})
    table, ids = table[:limit], ids[:limit]
    renamed = [_rename(fields, columns or {}) for _, fields in table]
    lacking = [any(fields.get(name) in empties for name in required) for fields in renamed]
    dropped = tuple(name for name, bad in zip(ids, lacking, strict=True) if bad)
    if dropped and missing == "error":
        raise _missing_values(source, dropped, len(ids), required)
    if len(dropped) == len(ids):
        raise DataError(f"every row of {source} lacks a value in {_quoted(required)}")
    kept = (Row(i, fields) for i, fields, bad in zip(ids, renamed, lacking, strict=True) if not bad)
    return Rows.of(kept, source, dropped)


def documents(
    source: str,
    *,
    column: str = "text",
    split: str | None = None,
    separator: str = "<|endoftext|>",
    limit: int | None = None,
) -> Iterator[str]:
    """Values of one column, in order, without the data set in memory.

    Text, JSON lines and parquet are read a piece at a time; a Hub set row by row from the cache of ``datasets``, which
    holds the whole after the first time; other formats are read as a whole.

    Args:
        source: as of ``read``.
        column: that holds the document.
        split: as of ``read``.
        separator: as of ``read``.
        limit: only the first documents.

    Raises:
        DataError: as ``read``, when the place is reached; a row lacks a value (of parquet such rows are left out).
    """
    empties: tuple[Any, ...] = (None,)
    places: Iterator[Place]
    if source.startswith("toy:"):
        places = ((i, dict(row.fields)) for i, row in enumerate(_toy(source, split)))
    else:
        only = [column] if split is None else [column, "split"]
        places, _, empties = _places(source, split, separator, only)
    given, nulls = 0, Path(source).suffix.lower() == ".parquet"
    for place, fields in places:
        if given == limit:
            return
        value = fields.get(column)
        if value in empties:
            if nulls:
                continue
            _check_columns(source, list(fields), (column,), {})
            raise DataError(f"row {place} of {source} lacks a value in '{column}'; fill it in, or remove the row")
        given += 1
        yield str(value)
    if not given:
        raise DataError(f"{source} holds no rows")


def _toy(source: str, split: str | None) -> Rows:
    if split is not None:
        raise DataError(f"{source} has no split '{split}'; toy corpora are cut by fractions")
    return toy_rows(source.removeprefix("toy:"))


def _places(
    source: str, split: str | None, separator: str, only: Sequence[str] = ()
) -> tuple[Iterator[Place], str, tuple[Any, ...]]:
    """Rows of a file or Hub set, the stem of their ids, and what counts as no value; of parquet columns ``only``."""
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{source} is a folder; name one of its files")
    if path.is_file():
        if kind not in _TEXTS and kind not in _READERS:
            endings = ", ".join([*_TEXTS, *_READERS])
            raise DataError(
                f"{source} does not end in one of {endings}, so its format is unknown; rename or convert it"
            )
        places = iter_text(path, separator) if kind in _TEXTS else _READERS[kind](path, only)
        places = places if split is None else _pick(source, places, split)
        return places, path.stem, (None, "") if kind in (".csv", ".tsv") else (None,)
    if path.exists():
        raise DataError(f"{source} is no regular file; write its content to one")
    if kind in _TEXTS or kind in _READERS or not _HUB_ID.fullmatch(source):
        raise DataError(f"data file {source} does not exist; check the path")
    return _hub(source, split or "train"), source, (None,)


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

    name, _, config = source.partition(":")
    try:
        for i, row in enumerate(datasets.load_dataset(name, config or None, split=split)):
            yield i, dict(row)
    except Exception as error:  # the library's failures share no class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{source} is no file here, and as a Hub data set its split '{split}' cannot be read: {reason}"
        ) from None


def _ids(table: Table, stem: str) -> list[str]:
    """The ``id`` column where every row has another one, else stem and place."""
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
