from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.decode.text import GrowingText, find_stop, held_back
from tests.reference.small_tokenizer import byte_level, metaspace

TEXTS = st.text(alphabet="abc\n 🌊éà.", max_size=30)
STOPS = st.lists(st.text(alphabet="abc\n 🌊é", min_size=1, max_size=3), max_size=3)


def slow_cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character; the first stop text that is complete cuts, the longest of several."""
    for end in range(1, len(text) + 1):
        done = [s for s in stops if text[:end].endswith(s)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


@given(text=TEXTS, stops=STOPS)
def test_find_stop_reads_character_by_character(text, stops):
    cut = find_stop(text, stops)
    assert (text if cut is None else text[:cut], cut is not None) == slow_cut(text, stops)


def test_held_back_is_the_longest_possible_beginning():
    assert held_back("so\nQue", ["\nQuestion:"]) == 4
    assert held_back("so", ["\nQuestion:"]) == 0
    assert held_back("aab", ["abab", "b!"]) == 2
    assert held_back("anything", []) == 0


@pytest.mark.parametrize("make", [byte_level, metaspace])
@given(prompt=TEXTS, end=st.sampled_from(["", "\n", "🌊"]), text=TEXTS, stops=STOPS)
def test_streamed_text_is_the_cut_text_whatever_the_tokens(make, prompt, end, text, stops):
    tokenizer = make()
    context, pieces = tokenizer.encode("a" + prompt + end), []
    whole = tokenizer.encode(text, continues=True)
    expected, stopped = slow_cut(text, stops)
    growing = GrowingText(tokenizer, context, stops, pieces.append)
    for token in whole:
        growing.push(token)
        assert expected.startswith("".join(pieces))  # nothing is ever taken back
        if growing.stopped:
            break
    assert growing.finish() == "".join(pieces) == growing.text == expected
    assert growing.stopped == stopped


def test_a_stop_text_of_byte_tokens_counts_at_once():
    tokenizer = metaspace()
    newline = tokenizer.encode("a\n")[-1]
    assert newline in tokenizer.byte_ids
    growing = GrowingText(tokenizer, tokenizer.encode("a\n"), ["\n"])
    for token in tokenizer.encode("cb", continues=True):
        growing.push(token)
    assert not growing.stopped  # the prompt's own newline does not count
    growing.push(newline)
    assert growing.stopped and growing.text == "cb"


def test_a_word_after_the_prompt_keeps_its_space():
    tokenizer = metaspace()
    both = tokenizer.encode("the cat")
    prompt = tokenizer.encode("the")
    growing = GrowingText(tokenizer, prompt, [])
    for token in both[len(prompt) :]:
        growing.push(token)
    assert growing.finish() == " cat"


def test_bytes_that_are_no_character_come_out_at_the_end():
    tokenizer = byte_level()
    wave = tokenizer.encode("🌊")
    assert len(wave) > 1
    growing = GrowingText(tokenizer, tokenizer.encode("a"), ["b"])
    growing.push(wave[0])
    assert growing.text == ""
    assert set(growing.finish()) == {"\ufffd"}


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_character_begun_in_the_prompt_ends_in_the_text(make):
    tokenizer = make()
    wave = tokenizer.encode("🌊")
    wave = wave[-4:]
    growing = GrowingText(tokenizer, [*tokenizer.encode("a"), *wave[:-1]], [])
    growing.push(wave[-1])
    assert growing.finish() == "🌊"


def test_a_prompt_cut_within_a_character_adds_nothing():
    tokenizer = metaspace()
    cut = tokenizer.encode("🌊")[-2:]
    growing = GrowingText(tokenizer, cut, [])
    growing.push(tokenizer.encode("ab", continues=True)[0])
    assert growing.finish() == tokenizer.decode([*cut, tokenizer.encode("ab", continues=True)[0]])[2:] != ""
