"""File formats: a path -> (line or index, fields) of every row; text, JSON lines and parquet a piece at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.data.border import line_feeds
from limbeck.data.dialect import Dialect, parse_table
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
    """Yield documents between separators, stripped; a file without separator is one document as it is.

    One document and a block are in memory at a time.
    """
    number = 0
    for document in _between(_line_ends(_blocks(path)), separator):
        if document:
            yield number, {"text": document}
            number += 1


def _line_ends(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the same text with CR LF and CR as LF, also where a block ends between the two."""
    held = ""
    for block in blocks:
        block, held = held + block, ""
        if block.endswith("\r"):
            block, held = block[:-1], "\r"
        yield line_feeds(block)
    yield line_feeds(held)


def _between(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """Yield what stands between separators, stripped, wherever blocks end; all as it is where there is no separator."""
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


def read_csv(path: Path, dialect: Dialect, delimiter: str | None = None) -> tuple[list[Place], str]:
    """Read the rows of a table with a header, and how it was cut; the place is the line a row begins on.

    Args:
        path: the file.
        dialect: what is known of delimiter and quotes; see ``parse_table``.
        delimiter: of files with this ending.

    Raises:
        DataError: the file cannot be read or holds no rows, no reading of its quotes fits, or a row is too wide.
    """
    cut = parse_table(line_feeds(_decode(path)), str(path), dialect, delimiter)
    names = _header(path, cut.header)
    table: list[Place] = []
    for line, cells in cut.rows:
        if len(cells) > len(names):
            raise DataError(
                f"line {line} of {path} has {len(cells)} cells under a header of {len(names)} ({cut.about}): quote the "
                "cell that holds the delimiter, or set the delimiter"
            )
        short: list[str | None] = [None] * (len(names) - len(cells))
        pairs = zip(names, [*cells, *short], strict=True)
        table.append((line, {name: cell for name, cell in pairs if name}))  # a nameless column is a saved index
    if not table:
        raise DataError(f"{path} has a header but no rows")
    return table, cut.about


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named '{twice}'; rename one")
    return names


def read_json(path: Path) -> tuple[list[Place], str]:
    """Read a list of objects, or of strings (field ``text``), and what the file is; the place is the index.

    JSON lines under the ending ``.json`` are read as what they are; their place is the line.

    Raises:
        DataError: the file is neither.
    """
    text = _decode(path)
    try:
        values = _loads(text)
    except json.JSONDecodeError as error:
        first = text.lstrip().split("\n", 1)[0]
        if error.msg == "Extra data" and _is_object(first):
            return list(_json_lines(text.split("\n"), path)), "JSON lines"
        raise DataError(f"line {error.lineno} of {path} is not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON that can be read: {_why(error)}") from None
    if not isinstance(values, list):
        kind = type(values).__name__
        raise DataError(f"{path} must hold a JSON list of rows, not a {kind}; JSON lines have the ending .jsonl")
    return [(i, _object(value, f"item {i} of {path}")) for i, value in enumerate(values)], "JSON list"


def iter_jsonl(path: Path) -> Iterator[Place]:
    """Return one object, or string (field ``text``), a line; the place is the line. One line is in memory at a time."""
    return _json_lines(_lines(_blocks(path)), path)


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[Place]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except json.JSONDecodeError as error:
            is_list = number == 1 and line.lstrip().startswith("[")
            hint = "; a JSON list has the ending .json" if is_list else ""
            raise DataError(f"line {number} of {path} is not valid JSON: {error.msg}{hint}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {path} is not JSON that can be read: {_why(error)}") from None
        if number == 1 and isinstance(value, list):
            raise DataError(f"line 1 of {path} is a list, not an object: a JSON list of rows has the ending .json")
        yield number, _object(value, f"line {number} of {path}")


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; refuse a key that stands twice, of which JSON keeps the last, and nobody would know."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return found


def _is_object(line: str) -> bool:
    try:
        return isinstance(_loads(line), dict | str)
    except (ValueError, RecursionError):
        return False


def _why(error: BaseException) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())


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
    """Yield rows of a parquet file, a few at a time; the place is the index.

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
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"{path} has two columns named '{twice}'; rename one")
            for name in columns:
                if name not in names:
                    raise DataError(f"{path} has no column '{name}', only {', '.join(names)}")
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(columns) or None):
                for row in batch.to_pylist():
                    yield at, row
                    at += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
