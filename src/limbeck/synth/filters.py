"""Filters of generated rows: each is a value that names the rows it drops and says why.

Row by row: verse, length, length ratio, edit distance, numbers and names, refusals, prompt echo, language. What
compares rows with each other or with other sets stands in ``synth.repeats``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError
from limbeck.measure.verse import poem
from limbeck.synth.text import names, numbers, relative_edit_distance, words

__all__ = [
    "EditDistance",
    "English",
    "Filter",
    "KeepsNames",
    "KeepsNumbers",
    "LengthFilter",
    "LengthRatio",
    "PromptEcho",
    "Readable",
    "Refusal",
    "RowFilter",
    "Verse",
    "unique_names",
]


class Filter(ABC):
    """What decides which rows of a set are dropped."""

    name: ClassVar[str]

    @abstractmethod
    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Return the id of every row to drop, with the reason.

        Raises:
            DataError: a row lacks a field that the filter reads.
        """


class RowFilter(Filter):
    """A filter that judges each row by itself."""

    @abstractmethod
    def reason(self, row: Row) -> str:
        """Return why ``row`` is dropped; empty: it is kept."""

    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Judge every row."""
        judged = ((row.id, self.reason(row)) for row in rows)
        return {name: why for name, why in judged if why}


def _text(row: Row, field: str) -> str:
    return row.text(field)


@dataclass(frozen=True, slots=True)
class Verse(RowFilter):
    """Drop poems that are not sonnets.

    Attributes:
        field: that holds the poem.
        scheme: ``perfect`` asks for Shakespeare's rhymes (six of seven), ``any`` for a known scheme, ``none`` for
            fourteen lines alone.
        metre: least share of lines that can be said in nine to eleven syllables.
    """

    name: ClassVar[str] = "verse"
    field: str = "text"
    scheme: str = "perfect"
    metre: float = 0.0

    def __post_init__(self) -> None:
        if self.scheme not in ("perfect", "any", "none") or not 0 <= self.metre <= 1:
            raise ValueError("the verse filter takes a scheme of perfect, any or none, and a metre from 0 to 1")

    def reason(self, row: Row) -> str:  # noqa: D102 - see the base
        found = poem(_text(row, self.field))
        if found.lines != 14:
            return f"{found.lines} lines, not 14"
        if (self.scheme == "perfect" and not found.perfect) or (self.scheme == "any" and not found.scheme):
            return f"rhymes {found.letters}"
        if found.near < self.metre * found.lines:
            return f"{found.near} of {found.lines} lines have nine to eleven syllables"
        return ""


@dataclass(frozen=True, slots=True)
class LengthFilter(RowFilter):
    """Drop rows with a text of fewer than ``least`` or more than ``most`` words."""

    name: ClassVar[str] = "length"
    fields: tuple[str, ...] = ("text",)
    least: int = 3
    most: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"the length filter needs 0 <= least <= most, not {self.least} and {self.most}")

    def reason(self, row: Row) -> str:  # noqa: D102
        for field in self.fields:
            count = len(words(_text(row, field)))
            if not self.least <= count <= self.most:
                return f"{field} has {count} words, not {self.least} to {self.most}"
        return ""


@dataclass(frozen=True, slots=True)
class LengthRatio(RowFilter):
    """Drop pairs whose shorter text has less than ``least`` of the longer one's words."""

    name: ClassVar[str] = "length ratio"
    fields: tuple[str, str] = ("sentence1", "sentence2")
    least: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"a length ratio lies between 0 and 1, not at {self.least:g}")

    def reason(self, row: Row) -> str:  # noqa: D102
        counts = [len(words(_text(row, field))) for field in self.fields]
        ratio = min(counts) / max(counts) if max(counts) else 0.0
        return f"length ratio {ratio:.2f} is below {self.least:g}" if ratio < self.least else ""


@dataclass(frozen=True, slots=True)
class EditDistance(RowFilter):
    """Drop pairs nearer than ``least`` (copies) or farther apart than ``most``, by relative edit distance in words."""

    name: ClassVar[str] = "edit distance"
    fields: tuple[str, str] = ("sentence1", "sentence2")
    least: float = 0.1
    most: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1:
            raise ValueError(f"edit distances need 0 <= least <= most <= 1, not {self.least:g} and {self.most:g}")

    def reason(self, row: Row) -> str:  # noqa: D102
        distance = relative_edit_distance(*(_text(row, field) for field in self.fields))
        if distance < self.least:
            return f"edit distance {distance:.2f} is below {self.least:g}: a copy"
        return f"edit distance {distance:.2f} is above {self.most:g}" if distance > self.most else ""


@dataclass(frozen=True, slots=True)
class KeepsNumbers(RowFilter):
    """Drop pairs that do not hold the same numbers in digits."""

    name: ClassVar[str] = "numbers"
    fields: tuple[str, str] = ("sentence1", "sentence2")

    def reason(self, row: Row) -> str:  # noqa: D102
        apart = numbers(_text(row, self.fields[0])) ^ numbers(_text(row, self.fields[1]))
        return f"numbers on one side alone: {', '.join(sorted(apart))}" if apart else ""


@dataclass(frozen=True, slots=True)
class KeepsNames(RowFilter):
    """Drop pairs where a name of one text is no word of the other (a name may lose its capital)."""

    name: ClassVar[str] = "names"
    fields: tuple[str, str] = ("sentence1", "sentence2")

    def reason(self, row: Row) -> str:  # noqa: D102
        a, b = (_text(row, field) for field in self.fields)
        apart = (names(a) - _bare(b)) | (names(b) - _bare(a))
        return f"names on one side alone: {', '.join(sorted(apart))}" if apart else ""


def _bare(text: str) -> set[str]:
    return {word.replace("’", "'").removesuffix("'s") for word in words(text)}


@dataclass(frozen=True, slots=True)
class Readable(RowFilter):
    """Drop answers that could not be read into fields, such as prose in place of JSON; ``unread`` holds the reason."""

    name: ClassVar[str] = "format"

    def reason(self, row: Row) -> str:  # noqa: D102
        return str(row.fields.get("unread") or "")


_UNABLE = r"i(?: can(?:not|['’]?t| not)|(?:['’]?m| am) (?:unable|not able) to| won['’]?t| must decline to)"
_ASKED = (
    r"(?:fulfil|comply|assist|generate|engage|help (?:you|with)|provide|answer (?:that|this|your)"
    r"|(?:write|create|produce|complete|continue|do|discuss|share) (?:that|this|such|your|an?y?)\b)"
)
_REFUSALS = re.compile(
    r"^\W*(?:(?:i['’]?m|i am) (?:very |so |really )?sorry,? but\b|sorry, (?:but )?i\b|my apologies\b|i apologi[sz]e\b"
    rf"|unfortunately, i\b)|\b{_UNABLE} {_ASKED}"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bagainst my (?:guidelines|programming)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Refusal(RowFilter):
    """Drop answers in which the teacher declines: an apology at the start, a task it says it cannot do, "as an AI"."""

    name: ClassVar[str] = "refusal"
    fields: tuple[str, ...] = ("text",)

    def reason(self, row: Row) -> str:  # noqa: D102
        for field in self.fields:
            if found := _REFUSALS.search(_text(row, field)):
                return f"{field} declines: {found.group()!r}"
        return ""


@dataclass(frozen=True, slots=True)
class PromptEcho(RowFilter):
    """Drop answers that repeat their prompt.

    Attributes:
        fields: that hold the answer.
        prompt: field that holds what was asked; a row without it is kept.
        words: shortest run of the prompt's words that counts as an echo; a shorter prompt counts as a whole.
    """

    name: ClassVar[str] = "prompt echo"
    fields: tuple[str, ...] = ("text",)
    prompt: str = "prompt"
    words: int = 8

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"an echo has at least one word, not {self.words}")

    def reason(self, row: Row) -> str:  # noqa: D102
        asked = words(str(row.fields.get(self.prompt) or ""))
        size = min(self.words, len(asked))
        if size < min(3, self.words):
            return ""
        runs = {tuple(asked[i : i + size]) for i in range(len(asked) - size + 1)}
        for field in self.fields:
            said = words(_text(row, field))
            run = next((r for i in range(len(said) - size + 1) if (r := tuple(said[i : i + size])) in runs), None)
            if run is not None:
                return f"{field} repeats the prompt: {' '.join(run)!r}"
        return ""


_COMMON = frozenset(
    "a about after all am an and any are as at be been before but by can could did do does down each every few "
    "first for from get had has have he her here him his how i if in into is it its just know like made make many "
    "may me more most much must my never new no not now of off on one only or other our out over own say see "
    "shall she should so some such than that the thee their them then there these they thine this those thou thy "
    "through time to too under up upon us very was way we well were what when where which while who whom whose "
    "why will with without would ye yet you your doth hath".split()
)
"""Commonest words of English, of verse too."""


@dataclass(frozen=True, slots=True)
class English(RowFilter):
    """Drop texts that seem not to be English.

    A text is kept if at least ``letters`` of its letters are Latin without marks, and at least ``common`` of its
    words are among the commonest of English; below ``least_words`` words a text is judged by its letters alone.
    """

    name: ClassVar[str] = "language"
    fields: tuple[str, ...] = ("text",)
    letters: float = 0.9
    common: float = 0.15
    least_words: int = 8

    def reason(self, row: Row) -> str:  # noqa: D102
        for field in self.fields:
            text = _text(row, field)
            letters = [c for c in text if c.isalpha()]
            latin = sum(c.isascii() for c in letters) / len(letters) if letters else 0.0
            if latin < self.letters:
                return f"{latin:.0%} of the letters of {field} are plain Latin"
            said = words(text)
            known = sum(word in _COMMON for word in said) / len(said) if said else 0.0
            if len(said) >= self.least_words and known < self.common:
                return f"{known:.0%} of the words of {field} are common English words"
        return ""


def unique_names(filters: Sequence[Filter]) -> None:
    """Check that no two filters have one name, by which the accounting keeps them apart.

    Raises:
        DataError: two have.
    """
    seen: set[str] = set()
    for one in filters:
        if one.name in seen:
            raise DataError(f"the filter '{one.name}' is named twice: leave one of them out")
        seen.add(one.name)
