"""File formats: a path -> (line or index, fields) of every row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from limbeck.errors import DataError

__all__ = ["read_csv", "read_json", "read_jsonl", "read_parquet", "read_text"]

Table = list[tuple[int, dict[str, Any]]]


def _decode(path: Path) -> str:
    """Text of a UTF-8 file, a byte-order mark left out.

    Raises:
        DataError: it cannot be read, is empty, or a line is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} of {path} is not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file to UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def read_text(path: Path, separator: str) -> Table:
    """Documents between separators, stripped; a file without separator is one document as it is."""
    text = _decode(path).replace("\r\n", "\n")
    if not separator or separator not in text:
        return [(0, {"text": text})]
    documents = (part.strip() for part in text.split(separator))
    return [(i, {"text": document}) for i, document in enumerate(d for d in documents if d)]


def read_csv(path: Path, delimiter: str | None) -> Table:
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
    table: Table = []
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


def read_json(path: Path) -> Table:
    """A list of objects, or of strings (field ``text``); the place is the index."""
    text = _decode(path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"line {error.lineno} of {path} is not valid JSON: {error.msg}") from None
    if not isinstance(values, list):
        raise DataError(f"{path} must hold a JSON list of rows, not a {type(values).__name__}")
    return [(i, _object(value, f"item {i} of {path}")) for i, value in enumerate(values)]


def read_jsonl(path: Path) -> Table:
    """One object, or string (field ``text``), a line; the place is the line."""
    table: Table = []
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number} of {path} is not valid JSON: {error.msg}") from None
        table.append((number, _object(value, f"line {number} of {path}")))
    return table


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, not a {type(value).__name__}")
    return value


def read_parquet(path: Path) -> Table:
    """Rows of a parquet file; the place is the index."""
    import pyarrow as pa  # half a second to import
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
    return list(enumerate(table.to_pylist()))
