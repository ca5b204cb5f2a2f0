"""What makes a text a sonnet: lines, rhyme scheme, metre; and lines that were copied from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from limbeck.measure.sounds import count_syllables, rhymes, word_of
from limbeck.measure.statistic import Statistic, ratio, share

__all__ = [
    "MEMORISED",
    "SCHEMES",
    "VERSE",
    "VERSE_PROTOCOL",
    "Poem",
    "line_set",
    "memorised_columns",
    "poem",
    "poem_lines",
    "verse_columns",
]

Floats = NDArray[np.float64]

SCHEMES: Mapping[str, str] = {
    "shakespearean": "ABABCDCDEFEFGG",
    "spenserian": "ABABBCBCCDCDEE",
    "petrarchan CDECDE": "ABBAABBACDECDE",
    "petrarchan CDCDCD": "ABBAABBACDCDCD",
    "petrarchan CDDCEE": "ABBAABBACDDCEE",
    "couplets": "AABBCCDDEEFFGG",
}
"""Rhyme schemes of fourteen lines; equal letters rhyme."""

_SLACK = 1
"""Rhymes that a scheme may miss and still be told: the dictionary's English is not the poet's."""

_SHORT = 3
"""A line of fewer words is nobody's: "and so it is" stands in many poems."""


@dataclass(frozen=True, slots=True)
class Poem:
    """What was found of one poem.

    Attributes:
        lines: lines that are not blank.
        scheme: the scheme of ``SCHEMES`` it is in, or empty.
        rhymed: the share of that scheme's rhymes that are there; where there is none, of the nearest scheme's.
        letters: its own scheme, each line with the first earlier one that it rhymes with, at most four lines back,
            or with the line of its couplet.
        ten: lines that can be said in ten syllables.
        near: lines that can be said in nine to eleven.
    """

    lines: int
    scheme: str
    rhymed: float
    letters: str
    ten: int
    near: int

    @property
    def perfect(self) -> bool:
        """Fourteen lines with Shakespeare's rhymes, one of seven missing at most."""
        return self.scheme == "shakespearean"


def poem_lines(text: str) -> list[str]:
    """Return lines that are not blank, white space around them left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def poem(text: str, *, strict: bool = False) -> Poem:
    """Look at one poem.

    Args:
        text: its lines.
        strict: count only rhymes by sound from the last stressed vowel on, and let none be missed.
    """
    lines = poem_lines(text)
    ends = [word_of(line) for line in lines]
    pairs = {(i, j) for i, j in combinations(range(len(ends)), 2) if rhymes(ends[i], ends[j], strict=strict)}
    scheme, rhymed = _scheme(len(lines), pairs, 0 if strict else _SLACK)
    counts = [_syllables(line) for line in lines]
    return Poem(
        lines=len(lines),
        scheme=scheme,
        rhymed=rhymed,
        letters=_letters(len(lines), pairs),
        ten=sum(low <= 10 <= high for low, high in counts),
        near=sum(low <= 11 and high >= 9 for low, high in counts),
    )


def _groups(letters: str) -> list[tuple[int, int]]:
    """Neighbouring places of each letter: the rhymes that a scheme asks for."""
    out = []
    for letter in dict.fromkeys(letters):
        at = [i for i, other in enumerate(letters) if other == letter]
        out += list(zip(at, at[1:], strict=False))
    return out


def _scheme(lines: int, pairs: set[tuple[int, int]], slack: int) -> tuple[str, float]:
    if lines != 14:
        return "", 0.0
    shares = {}
    for name, letters in SCHEMES.items():
        wanted = _groups(letters)
        found = sum(pair in pairs for pair in wanted)
        shares[name] = (found / len(wanted), len(wanted), found >= len(wanted) - slack)
    best = max(shares, key=lambda name: shares[name])  # of equal shares the scheme that asks for more rhymes
    share, _, told = shares[best]
    return (best if told else ""), share


def _letters(lines: int, pairs: set[tuple[int, int]]) -> str:
    letters: list[str] = []
    for j in range(lines):
        earlier = next((i for i in range(j - 1, max(j - 5, -1), -1) if (i, j) in pairs), None)
        fresh = len(set(letters))
        letters.append(letters[earlier] if earlier is not None else chr(ord("A") + fresh) if fresh < 26 else "?")
    return "".join(letters)


def _syllables(line: str) -> tuple[int, int]:
    words = [w.strip("'") for w in re.findall(r"[a-zà-ÿ']+", line.lower().replace("’", "'"))]
    counts = [count_syllables(w) for w in words if w]
    return sum(low for low, _ in counts), sum(high for _, high in counts)


def verse_columns(texts: Sequence[str]) -> dict[str, Floats]:
    """Look at many poems.

    Returns:
        One number a poem: ``lines``; ``fourteen``, ``perfect`` and ``any_scheme``, 0 or 1; ``rhymed``, a share; and
        ``ten_syllables`` and ``near_ten``, lines. ``VERSE`` makes figures of them.
    """
    poems = [poem(text) for text in texts]
    return {
        "lines": np.array([float(p.lines) for p in poems]),
        "fourteen": np.array([float(p.lines == 14) for p in poems]),
        "perfect": np.array([float(p.perfect) for p in poems]),
        "any_scheme": np.array([float(p.scheme != "") for p in poems]),
        "rhymed": np.array([p.rhymed for p in poems]),
        "ten_syllables": np.array([float(p.ten) for p in poems]),
        "near_ten": np.array([float(p.near) for p in poems]),
    }


VERSE: tuple[Statistic, ...] = (
    share("perfect", "perfect sonnets"),
    share("any_scheme", "any known scheme"),
    share("fourteen", "fourteen lines"),
    share("rhymed", "rhymes there"),
    ratio("ten_syllables", "lines", name="ten-syllable lines", bounds=(0, 1)),
    ratio("near_ten", "lines", name="lines of nine to eleven", bounds=(0, 1)),
)
"""Figures of ``verse_columns``."""

VERSE_PROTOCOL = (
    "rhyme by the CMU dictionary (sound from the last stressed vowel, a promoted last syllable, or spelling; endings "
    "and spelling where a word is unknown); perfect: 14 lines and 6 of 7 rhymes of ABAB CDCD EFEF GG; a line has ten "
    "syllables if some way of saying it in verse has"
)
"""What the figures rest on, in words."""


def line_set(texts: Iterable[str]) -> frozenset[str]:
    """Return every line of ``texts`` of three words or more, in lower case without punctuation."""
    lines = (_bare(line) for text in texts for line in poem_lines(text))
    return frozenset(line for line in lines if line.count(" ") >= _SHORT - 1)


def memorised_columns(texts: Sequence[str], known: frozenset[str]) -> dict[str, Floats]:
    """Return lines that stand, word for word, in the text that was learned (I31).

    Args:
        texts: what was generated, given lines left out.
        known: ``line_set`` of the training text.

    Returns:
        ``memorised`` and ``new_lines``: such lines, and all lines of three words or more, of each text.
    """
    lines = [[line for line in map(_bare, poem_lines(text)) if line.count(" ") >= _SHORT - 1] for text in texts]
    return {
        "memorised": np.array([float(sum(line in known for line in some)) for some in lines]),
        "new_lines": np.array([float(len(some)) for some in lines]),
    }


MEMORISED = ratio("memorised", "new_lines", name="memorised lines", better="lower", bounds=(0, 1))
"""Share of lines of ``memorised_columns`` that were copied."""


def _bare(line: str) -> str:
    return " ".join(re.findall(r"[a-z0-9à-ÿ']+", line.lower().replace("’", "'")))
