"""Rhyme and syllables, of words that the dictionary has and has not."""

from __future__ import annotations

import pytest

from limbeck.measure.sounds import count_syllables, pronunciations, rhyme_keys, rhymes, word_of


@pytest.mark.parametrize(
    ("a", "b"),
    [("day", "may"), ("increase", "decease"), ("bright", "night"), ("singing", "ringing"), ("viewest", "renewest"),
     ("treasure", "pleasure"), ("deserved", "swerved"), ("feel'st", "steal'st"), ("amazeth", "gazeth")],
)  # fmt: skip
def test_words_that_rhyme_by_sound(a: str, b: str) -> None:
    assert rhymes(a, b) and rhymes(b, a) and rhymes(a, b, strict=True)


@pytest.mark.parametrize(
    ("a", "b"),
    [("memory", "thee"), ("memory", "die"), ("love", "prove"), ("ornament", "content"), ("remembered", "dead"),
     ("tongue", "song"), ("loving", "moving")],
)  # fmt: skip
def test_rhymes_of_the_poets_that_are_not_strict(a: str, b: str) -> None:
    assert rhymes(a, b) and not rhymes(a, b, strict=True)


@pytest.mark.parametrize(
    ("a", "b"),
    [("day", "night"), ("summer", "winter"), ("walking", "singing"), ("gladness", "sadly"), ("table", "cable car"),
     ("same", "same"), ("", "day"), ("orange", "silver"), ("wonder", "water"), ("kindness", "sadness")],
)  # fmt: skip
def test_words_that_do_not_rhyme(a: str, b: str) -> None:
    assert not rhymes(a, b)


def test_the_last_word_of_a_line() -> None:
    assert word_of("Thyself thy foe, to thy sweet self too cruel.") == "cruel"
    assert word_of('Making a famine where abundance "lies,"') == "lies"
    assert word_of("And be forever self-substantial --") == "substantial"
    assert word_of("where’er thou feel’st it,'") == "it"
    assert word_of(" ... ") == ""


@pytest.mark.parametrize(
    ("word", "fewest", "most"),
    [("day", 1, 1), ("heaven", 1, 2), ("power", 1, 2), ("increase", 2, 2), ("loved", 1, 2), ("wretched", 2, 2),
     ("flattering", 2, 3), ("zorblaxen", 3, 3), ("frume", 1, 1), ("blorp", 1, 1)],
)  # fmt: skip
def test_syllables(word: str, fewest: int, most: int) -> None:
    assert count_syllables(word) == (fewest, most)


def test_endings_that_the_dictionary_lacks() -> None:
    assert pronunciations("feel'st") == (("F", "IY1", "L", "S", "T"),)
    assert pronunciations("viewest")[0][-3:] == ("IH0", "S", "T")
    assert pronunciations("ne'er")[0][-2:] == ("EH1", "R") and count_syllables("o'er") == (1, 1)
    assert rhymes("o'erlook", "book") and count_syllables("overlooketh")[1] == 4
    assert pronunciations("zorblaxen") == ()
    assert rhyme_keys("zorblaxen")  # by its letters
