"""Poems under numbered headings: ``18``, ``XVIII``, ``18.``, ``Sonnet 18.``, ``SONNET XVIII``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import DataError

__all__ = ["numbered_poems"]

_HEADING = re.compile(
    r"\s*(?:(?P<word>sonnet|poem|number|no\.?|nr\.?|\#)\s*)?(?:(?P<arabic>[0-9]{1,6})|(?P<roman>[ivxlcdm]+))\s*[.:)]?\s*",
    re.IGNORECASE,
)
_ROMAN = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})", re.IGNORECASE)
_LARGEST = 999  # what is larger is rather a year
_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}


@dataclass(frozen=True, slots=True)
class _Heading:
    line: int
    number: int
    style: tuple[bool, bool]  # with a word before it; in Roman numerals
    alone: bool  # blank lines around it


def numbered_poems(text: str, source: str) -> list[tuple[int, str]]:
    """Return the number and text of each poem that stands under a heading of its own; empty where there are no
    headings.

    What stands before the first heading is a title page. Headings are of one style and count up by one, or go up with
    gaps where each stands between blank lines; a line that only looks like one (a year, ``I`` alone) does not continue
    the count, and belongs to its poem.

    Args:
        text: the file, with LF as line end.
        source: the file's name, for messages.

    Raises:
        DataError: lines look like headings, but do not count up; names the line.
    """
    lines = text.split("\n")
    found = [h for i in range(len(lines)) if (h := _heading(lines, i)) is not None]
    if not found:
        return []
    chosen = max((_counting(found, style) for style in dict.fromkeys(h.style for h in found)), key=len)
    apart = [h for h in found if h.alone and h.style == chosen[0].style]
    numbers = [h.number for h in apart]
    if len(apart) > len(chosen) and max(numbers) <= _LARGEST and numbers == sorted(set(numbers)):
        chosen = apart
    if len(chosen) < 2 and not chosen[0].alone:
        return []
    _check(apart, chosen, source)
    ends = [*(h.line for h in chosen[1:]), len(lines)]
    return [(h.number, "\n".join(lines[h.line + 1 : end])) for h, end in zip(chosen, ends, strict=True)]


def _heading(lines: Sequence[str], at: int) -> _Heading | None:
    match = _HEADING.fullmatch(lines[at])
    if match is None:
        return None
    roman = match["roman"]
    if roman is not None and (_ROMAN.fullmatch(roman) is None or (match["word"] is None and roman != roman.upper())):
        return None
    number = int(match["arabic"]) if roman is None else _roman(roman)
    around = [lines[i] for i in (at - 1, at + 1) if 0 <= i < len(lines)]
    return _Heading(at, number, (match["word"] is not None, roman is not None), not any(map(str.strip, around)))


def _roman(text: str) -> int:
    values = [_VALUES[letter] for letter in text.lower()]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def _counting(found: Sequence[_Heading], style: tuple[bool, bool]) -> list[_Heading]:
    """Return the longest run of headings of one style that count up by one; of two the one with more blank lines
    around.
    """
    runs: dict[int, list[_Heading]] = {}
    for heading in (h for h in found if h.style == style):
        run = [*runs.get(heading.number - 1, []), heading]
        runs[heading.number] = max(runs.get(heading.number, []), run, key=_worth)
    return max(runs.values(), key=_worth, default=[])


def _worth(run: Sequence[_Heading]) -> tuple[int, int]:
    return len(run), sum(heading.alone for heading in run)


def _check(apart: Sequence[_Heading], chosen: Sequence[_Heading], source: str) -> None:
    """Refuse a heading of the chosen style that stands alone between blank lines and does not count."""
    kept = {h.line for h in chosen}
    odd = next((h for h in apart if h.line not in kept), None)
    if odd is not None and any(h.alone for h in chosen):
        raise DataError(
            f"line {odd.line + 1} of {source} looks like the heading of a poem ({odd.number}), but the headings count "
            f"from {chosen[0].number} to {chosen[-1].number}: correct it, or give poems as rows with a column 'text'"
        )
