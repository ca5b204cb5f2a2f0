"""Verse measures on made poems, and on the real sonnets."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

from limbeck.data.toy.table import toy_rows
from limbeck.measure.scores import Scores
from limbeck.measure.verse import (
    MEMORISED,
    SCHEMES,
    VERSE,
    line_set,
    memorised_columns,
    poem,
    poem_lines,
    verse_columns,
)

SOUNDS = {
    "A": ("day", "way", "say", "may"),
    "B": ("night", "light", "sight", "right"),
    "C": ("tree", "sea", "me", "be"),
    "D": ("rose", "those", "knows", "goes"),
    "E": ("sand", "hand", "land", "stand"),
    "F": ("bell", "tell", "well"),
    "G": ("sun", "run", "one"),
}


def _made(letters: str) -> str:
    used = dict.fromkeys(SOUNDS, 0)
    lines = []
    for letter in letters:
        lines.append(f"I never saw upon the other {SOUNDS[letter][used[letter]]}")
        used[letter] += 1
    return "\n".join(lines)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_every_scheme_is_recognised(name: str) -> None:
    found = poem(_made(SCHEMES[name]))
    assert (found.scheme, found.rhymed, found.lines) == (name, 1.0, 14)
    assert found.perfect == (name == "shakespearean")
    assert found.ten == 14


def test_letters_and_what_is_no_sonnet() -> None:
    quatrains = poem(_made("ABABCDCD"))
    assert (quatrains.letters, quatrains.scheme, quatrains.lines, quatrains.perfect) == ("ABABCDCD", "", 8, False)
    blank = poem("\n".join(f"the {w} of it" for w in "sun moth table orange silver wolf garden iron salt".split()))
    assert blank.scheme == "" and blank.rhymed == 0


def test_one_rhyme_may_be_missed_and_two_may_not() -> None:
    lines = _made(SCHEMES["shakespearean"]).split("\n")
    lines[2] = "I never saw upon the other orange"
    assert poem("\n".join(lines)).perfect and poem("\n".join(lines)).rhymed == pytest.approx(6 / 7)
    assert not poem("\n".join(lines), strict=True).perfect
    lines[13] = "I never saw upon the other silver"
    assert not poem("\n".join(lines)).perfect


def test_figures_are_sums_over_poems() -> None:
    texts = [_made(SCHEMES["shakespearean"]), "one line\n\n  \nand two lines that are a good deal too long for it"]
    scores = Scores.of(["a", "b"], **verse_columns(texts))
    found = {s.name: s.value(scores) for s in VERSE}
    assert found == pytest.approx(
        {"perfect sonnets": 0.5, "any known scheme": 0.5, "fourteen lines": 0.5, "rhymes there": 0.5,
         "ten-syllable lines": 14 / 16, "lines of nine to eleven": 14 / 16}
    )  # fmt: skip


def test_copied_lines_are_counted_in_any_case_and_punctuation() -> None:
    known = line_set(["Shall I compare thee to a summer's day?\nSo it"])
    columns = memorised_columns(["shall i compare thee, to a summer’s day\nSo it\na new line here", "x"], known)
    assert columns["memorised"].tolist() == [1, 0] and columns["new_lines"].tolist() == [2, 0]
    assert MEMORISED.value(Scores.of(["a", "b"], **columns)) == 0.5


def test_toy_verse_is_recognised() -> None:
    columns = verse_columns([str(r.fields["text"]) for r in toy_rows("verse", size=20)])
    assert columns["fourteen"].all()
    assert columns["perfect"].mean() >= 0.9


@pytest.mark.realdata
def test_real_sonnets_are_recognised_and_shuffled_ones_are_not(real_data: Path) -> None:
    """At the time of writing 134 of 140 (96 %), 92 % of lines in ten syllables, and no shuffled poem."""
    text = (real_data / "cs224n" / "sonnets.txt").read_text(encoding="utf-8")
    poems = ["\n".join(poem_lines(p)) for p in re.split(r"\n\s*\d+\s*\n", text)[1:]]
    poems = [p for p in poems if len(poem_lines(p)) == 14]
    assert len(poems) == 129
    columns = verse_columns(poems)
    assert columns["perfect"].mean() >= 0.93
    assert columns["ten_syllables"].sum() / columns["lines"].sum() >= 0.9
    random = Random(0)
    shuffled = ["\n".join(random.sample(poem_lines(p), 14)) for p in poems]
    assert np.mean(verse_columns(shuffled)["perfect"]) <= 0.01
