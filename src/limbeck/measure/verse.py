"""What makes a text a sonnet: lines, rhyme scheme, metre; and lines that were copied from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from limbeck.measure.overlap import Overlap
from limbeck.measure.scores import Scores
from limbeck.measure.sounds import count_syllables, rhymes, word_of
from limbeck.measure.statistic import mean, ratio

__all__ = ["SCHEMES", "Poem", "line_set", "memorised_lines", "poem", "poem_lines", "verse"]

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
        """Fourteen lines, every rhyme of Shakespeare's scheme but one at most (system B's check, with its tolerance)."""
        return self.scheme == "shakespearean"


def poem_lines(text: str) -> list[str]:
    """Lines that are not blank, white space around them left out."""
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
        shares[name] = (found / len(wanted), found >= len(wanted) - slack)
    best = max(shares, key=lambda name: shares[name][0])
    share, told = shares[best]
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


def verse(texts: Mapping[str, str]) -> Overlap:
    """Look at many poems.

    Args:
        texts: item id -> poem.

    Returns:
        Per-item ``lines``, ``fourteen``, ``rhymed``, ``perfect``, ``any_scheme``, ``ten_syllables`` and
        ``near_ten`` (lines), and the figures: rate of perfect sonnets, of any known scheme, of fourteen lines, share of
        rhymes that are there, share of lines of ten syllables.
    """
    found = {name: poem(text) for name, text in texts.items()}
    poems = list(found.values())
    scores = Scores.of(
        found,
        lines=[p.lines for p in poems],
        fourteen=[p.lines == 14 for p in poems],
        rhymed=[p.rhymed for p in poems],
        perfect=[p.perfect for p in poems],
        any_scheme=[p.scheme != "" for p in poems],
        ten_syllables=[p.ten for p in poems],
        near_ten=[p.near for p in poems],
    )
    return Overlap(
        scores=scores,
        statistics=(
            mean("perfect"),
            mean("any_scheme"),
            mean("fourteen"),
            mean("rhymed"),
            ratio("ten_syllables", "lines", name="ten-syllable lines"),
            ratio("near_ten", "lines", name="nine to eleven syllables"),
        ),
        protocol=PROTOCOL,
    )


PROTOCOL: Mapping[str, Any] = {
    "metric": "verse",
    "dictionary": "CMU (pronouncing), endings and spelling for unknown words",
    "rhyme": "sound from the last stressed vowel, or a promoted last syllable, or spelling",
    "perfect": f"14 lines and at least {len(_groups(SCHEMES['shakespearean'])) - _SLACK} of 7 rhymes of ABAB CDCD EFEF GG",
    "syllables": "a line counts if some way of saying it in verse has ten",
}
"""What the figures rest on."""


def line_set(texts: Iterable[str]) -> frozenset[str]:
    """Every line of ``texts`` of three words or more, in lower case without punctuation."""
    lines = (_bare(line) for text in texts for line in poem_lines(text))
    return frozenset(line for line in lines if line.count(" ") >= _SHORT - 1)


def memorised_lines(texts: Mapping[str, str], known: frozenset[str]) -> Overlap:
    """Share of generated lines that stand, word for word, in the text that was learned (I31).

    Args:
        texts: item id -> what was generated, given lines left out.
        known: ``line_set`` of the training text.
    """
    copied, lines = [], []
    for text in texts.values():
        mine = [_bare(line) for line in poem_lines(text)]
        long = [line for line in mine if line.count(" ") >= _SHORT - 1]
        copied.append(sum(line in known for line in long))
        lines.append(len(long))
    return Overlap(
        scores=Scores.of(texts, memorised=copied, new_lines=lines),
        statistics=(ratio("memorised", "new_lines", name="memorised lines", better="lower"),),
        protocol={"metric": "lines equal to training lines", "training_lines": len(known), "least_words": _SHORT},
    )


def _bare(line: str) -> str:
    return " ".join(re.findall(r"[a-z0-9à-ÿ']+", line.lower().replace("’", "'")))
