"""File formats: a path -> (line or index, fields) of every row; text, JSON lines and parquet a piece at a time."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import DataError

__all__ = ["iter_jsonl", "iter_parquet", "iter_text", "read_csv", "read_json"]

Place = tuple[int, dict[str, Any]]

_BLOCK_BYTES = 1 << 20
_PARQUET_ROWS = 64  # a document may be a book


def _blocks(path: Path) -> Iterator[str]:
    """Text of a UTF-8 file by pieces, a byte-order mark left out; characters are not cut.

    Raises:
        DataError: the file cannot be read, is empty (or white space alone), or a line is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, blank, first = 1, True, True
    try:
        with path.open("rb") as file:
            while True:
                raw = file.read(_BLOCK_BYTES)
                text = decoder.decode(raw, final=not raw)
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                line, blank = line + raw.count(b"\n"), blank and not text.strip()
                if text:
                    yield text
                if not raw:
                    break
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:  # of this block and the few bytes, never a line's end, that were left before
        line += error.object.count(b"\n", 0, error.start)
        raise DataError(
            f"line {line} of {path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8"
        ) from None
    if blank:
        raise DataError(f"{path} is empty")


def iter_text(path: Path, separator: str) -> Iterator[Place]:
    """Documents between separators, stripped; a file without separator is one document as it is.

    One document and a block are in memory at a time.
    """
    number = 0
    for document in _between(_line_ends(_blocks(path)), separator):
        if document:
            yield number, {"text": document}
            number += 1


def _line_ends(blocks: Iterable[str]) -> Iterator[str]:
    """The same text with CR LF as LF, also where a block ends between the two."""
    held = ""
    for block in blocks:
        block, held = held + block, ""
        if block.endswith("\r"):
            block, held = block[:-1], "\r"
        yield block.replace("\r\n", "\n")
    yield held


def _between(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """What stands between separators, stripped, wherever blocks end; all as it is where there is no separator."""
    overlap = max(len(separator) - 1, 0)
    held: list[str] = []  # of the document that is open
    tail, split = "", False  # its last characters, in which a separator may have begun
    for block in blocks:
        window = tail + block
        if separator and separator in window:
            split = True
            *whole, block = "".join([*held, block]).split(separator)
            for document in whole:
                yield document.strip()
            held, window = [], block
        held.append(block)
        tail = window[len(window) - overlap :] if len(window) > overlap else window
    rest = "".join(held)
    yield rest.strip() if split else rest


def _decode(path: Path) -> str:
    """Text of a UTF-8 file as a whole; see ``_blocks``."""
    return "".join(_blocks(path))


def read_csv(path: Path, delimiter: str | None) -> list[Place]:
    """Rows of a CSV with a header; the place is the line a row begins on.

    Args:
        path: the file.
        delimiter: None: a tab where the header holds one (some ``.csv`` files are tab-separated), else the more
            frequent of comma and semicolon in it. Quoting is Python's default: ``"`` around a cell, doubled inside.
    """
    text = _decode(path)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if delimiter is None:
        delimiter = "\t" if "\t" in header else max(",;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: list[str] | None = None
    table: list[Place] = []
    line = 1
    try:
        for cells in reader:
            begins, line = line, reader.line_num + 1
            if not cells:
                continue  # a blank line
            if names is None:
                names = _header(path, cells)
                continue
            if len(cells) > len(names):
                raise DataError(f"line {begins} of {path} has {len(cells)} cells under a header of {len(names)}")
            short: list[str | None] = [None] * (len(names) - len(cells))
            pairs = zip(names, [*cells, *short], strict=True)
            table.append((begins, {name: cell for name, cell in pairs if name}))  # a nameless column is a saved index
    except csv.Error as error:
        raise DataError(f"line {line} of {path} is not valid CSV: {error} (is a quote left open?)") from None
    if not table:
        raise DataError(f"{path} has a header but no rows")
    return table


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named '{twice}'; rename one")
    return names


def read_json(path: Path) -> list[Place]:
    """A list of objects, or of strings (field ``text``); the place is the index."""
    text = _decode(path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"line {error.lineno} of {path} is not valid JSON: {error.msg}") from None
    if not isinstance(values, list):
        raise DataError(f"{path} must hold a JSON list of rows, not a {type(values).__name__}")
    return [(i, _object(value, f"item {i} of {path}")) for i, value in enumerate(values)]


def iter_jsonl(path: Path) -> Iterator[Place]:
    """One object, or string (field ``text``), a line; the place is the line. One line is in memory at a time."""
    for number, line in enumerate(_lines(_blocks(path)), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number} of {path} is not valid JSON: {error.msg}") from None
        yield number, _object(value, f"line {number} of {path}")


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines of a text, wherever blocks end; LF alone ends a line."""
    held: list[str] = []
    for block in blocks:
        if "\n" in block:
            *whole, block = "".join([*held, block]).split("\n")
            yield from whole
            held = []
        held.append(block)
    yield "".join(held)


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, not a {type(value).__name__}")
    return value


def iter_parquet(path: Path, columns: Sequence[str] = ()) -> Iterator[Place]:
    """Rows of a parquet file, a few at a time; the place is the index.

    Args:
        path: the file.
        columns: read these alone; empty: all.

    Raises:
        DataError: it is no parquet file, or lacks one of ``columns``.
    """
    import pyarrow as pa  # half a second to import
    import pyarrow.parquet as pq

    at = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in columns:
                if name not in names:
                    raise DataError(f"{path} has no column '{name}', only {', '.join(names)}")
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(columns) or None):
                for row in batch.to_pylist():
                    yield at, row
                    at += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
