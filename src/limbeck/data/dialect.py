"""Dialects of tables: the delimiter and the quotes are found, checked against every row, and described."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from limbeck.config import Config
from limbeck.errors import DataError

__all__ = ["Dialect", "CutTable", "parse_table"]

_NAMES = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_WORDS = {mark: name for name, mark in _NAMES.items()}
_LOOKED_AT = 1 << 16  # characters in which delimiters are compared
_CELL = re.compile(r'"(?:[^"]|"")*"')


class Dialect(Config):
    """How a table of text is cut into cells; what is not given is found in the file and checked."""

    delimiter: str | None = Field(
        None,
        description="what separates cells: tab, comma, semicolon, pipe or one character; none: found in the header",
    )
    quotes: Literal["auto", "on", "off"] = Field(
        "auto",
        description='on: "..." holds a cell, which may hold delimiters and line ends; off: quotes are text and a line '
        "is a row; auto: whichever fits every row",
    )

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        mark = None if value is None else _NAMES.get(value, "\t" if value == "\\t" else value)
        if mark is not None and (len(mark) != 1 or mark in '"\r\n'):
            raise ValueError(f"a delimiter is {', '.join(_NAMES)} or one character, but no quote or line end")
        return mark


@dataclass(frozen=True, slots=True)
class CutTable:
    """A table as it was cut.

    Attributes:
        header: cells of the first row.
        rows: line that a row begins on, and its cells.
        about: how it was cut, in words.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    about: str


@dataclass(frozen=True, slots=True)
class _Cut:
    """Rows with the first and last line of each; ``broken``: why the row on line ``at`` cannot be cut."""

    rows: list[tuple[int, int, list[str]]]
    broken: str = ""
    at: int = 0

    @property
    def wide(self) -> int:
        return len(self.rows[0][2]) if self.rows else 0


def parse_table(text: str, where: str, dialect: Dialect, delimiter: str | None = None) -> CutTable:
    """Cut ``text`` into a header and rows.

    Under ``quotes="auto"`` quotes hold cells where that fits every row. Where it does not, and each line by itself has
    as many cells as the header, quotes are text (MRPC as published). What fits neither way is refused, and so is a
    quoted cell that swallows lines each of which is a row by itself.

    Args:
        text: the whole, with LF as line end.
        where: the file, for messages.
        dialect: what is known of it.
        delimiter: of files with this ending; ``dialect`` goes before it.

    Raises:
        DataError: no reading of the quotes fits; names the line.
    """
    mark = dialect.delimiter or delimiter or _delimiter(text)
    words = f"cells by {_WORDS.get(mark, repr(mark))}"
    if '"' not in text or dialect.quotes == "off":
        cut = _by_line(text, mark)
        words += ", quotes are text" if '"' in text else ""
    else:
        cut = _quoted(text, mark)
        swallowed = _swallowed(text, mark, cut) if dialect.quotes == "auto" else None
        if swallowed is not None or cut.broken:
            lines = _by_line(text, mark)
            even = lines.wide > 1 and all(len(cells) == lines.wide for _, _, cells in lines.rows)
            mixed = (swallowed is not None and mark != "\t") or _was_quoted(lines, mark)
            if dialect.quotes == "on" or not even or mixed:
                raise DataError(_refusal(where, swallowed, cut))
            first = swallowed[0] if swallowed else cut.at
            cut, words = lines, f"{words}, quotes are text (one on line {first} is not closed as a cell's is)"
        else:
            words += ", quoted"
            long = sum(first != last for first, last, _ in cut.rows)
            words += f", {long} rows with line ends in cells" if long else ""
    header = cut.rows[0][2] if cut.rows else []
    return CutTable(header, [(first, cells) for first, _, cells in cut.rows[1:]], words)


def _refusal(where: str, swallowed: tuple[int, int] | None, cut: _Cut) -> str:
    if swallowed is not None:
        return (
            f"line {swallowed[0]} of {where} opens a quote that closes on line {swallowed[1]}, and each line between "
            "has as many cells as a row: set quotes=off if quotes are text there, or quotes=on if it is one cell"
        )
    return (
        f"line {cut.at} of {where} opens a quote that is not closed as a cell's is ({cut.broken}): close it and double "
        "quotes within the cell, or set quotes=off if quotes are text in the whole file"
    )


def _delimiter(text: str) -> str:
    """Return the header's delimiter that cuts most rows as the header; several alike: tab, then the more frequent."""
    header = text.lstrip("\n").split("\n", 1)[0]
    for looked_at in (_CELL.sub("", header), header):
        found = {mark: looked_at.count(mark) for mark in _NAMES.values() if mark in looked_at}
        if found:
            fits = {mark: _fit(text, mark) for mark in found} if len(found) > 1 else dict.fromkeys(found, 1.0)
            return max(found, key=lambda mark: (fits[mark], mark == "\t", found[mark]))
    return ","


def _fit(text: str, mark: str) -> float:
    """Share of the first rows that have as many cells as the header, cut at ``mark``."""
    piece = text[:_LOOKED_AT]
    piece = piece if len(piece) == len(text) else piece[: piece.rfind("\n") + 1]
    found = max((_quoted(piece, mark), _by_line(piece, mark)), key=lambda cut: -bool(cut.broken))
    return round(sum(len(cells) == found.wide for _, _, cells in found.rows) / max(len(found.rows), 1), 2)


def _by_line(text: str, mark: str) -> _Cut:
    """Each line a row; blank ones are left out."""
    return _Cut([(i, i, line.split(mark)) for i, line in enumerate(text.split("\n"), start=1) if line])


def _quoted(text: str, mark: str) -> _Cut:
    """Rows with quoted cells (RFC 4180), as far as they can be cut."""
    rows: list[tuple[int, int, list[str]]] = []
    with _no_limit(len(text)):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        line = 0
        try:
            for cells in reader:
                first, line = line + 1, reader.line_num
                if cells:
                    rows.append((first, line, cells))
        except csv.Error as error:
            return _Cut(rows, _reason(error, mark, reader.line_num), line + 1)
    return _Cut(rows)


def _reason(error: csv.Error, mark: str, line: int) -> str:
    if "end of data" in str(error):
        return "the file ends within it"
    if "expected after" in str(error):
        return f"line {line} goes on behind its closing quote without {_WORDS.get(mark, repr(mark))}"
    return f"{error} on line {line}"


@contextmanager
def _no_limit(size: int) -> Iterator[None]:
    """Let a cell be as long as the file: csv refuses cells over 131,072 characters by default."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, size + 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _swallowed(text: str, mark: str, cut: _Cut) -> tuple[int, int] | None:
    """First and last line of a row whose lines are all rows by themselves; a table of one column has none.

    Verse may have a comma in each line. So where tabs are not the delimiter, the lines must also end or begin with
    cells that other rows end or begin with, or be four or more of three cells or more.
    """
    long = [(first, last) for first, last, _ in cut.rows if first != last]
    if cut.wide < 2 or not long:
        return None
    lines = text.split("\n")
    short = [cells for first, last, cells in cut.rows[1:] if first == last]
    begins, ends = {cells[0] for cells in short}, {cells[-1] for cells in short}
    for first, last in long:
        parts = [line.split(mark) for line in lines[first - 1 : last] if line]
        if any(len(cells) != cut.wide for cells in parts):
            continue
        alike = all(c[-1] in ends for c in parts[:-1]) or all(c[0] in begins for c in parts[1:])
        if mark == "\t" or alike or (cut.wide > 2 and len(parts) > 3):
            return first, last
    return None


def _was_quoted(cut: _Cut, mark: str) -> bool:
    """Whether a cell is quoted so that quotes can hardly be text: with doubled ones in it or, but for tabs, at all."""
    inner = (cell[1:-1] for _, _, cells in cut.rows for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"')
    return any((mark != "\t" or '""' in one) and '"' not in one.replace('""', "") for one in inner)
