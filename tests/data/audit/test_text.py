"""Hashes of words, runs and wholes agree with strings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.audit.text import chunks, grams, hash_texts, normalised
from tests.reference.slow_audit import letters, words

ALPHABET = st.text(alphabet="abA é'’-_.,\n\t12ßﬁ", max_size=30)


@given(st.lists(ALPHABET, min_size=1, max_size=6))
def test_words_and_wholes_are_equal_where_the_strings_are(texts: list[str]) -> None:
    hashed = hash_texts(texts)
    cut = [words(t) for t in texts]
    assert hashed.lengths.tolist() == [len(c) for c in cut]
    flat = [w for c in cut for w in c]
    names = dict(zip(hashed.words.tolist(), flat, strict=True))
    assert [names[h] for h in hashed.words.tolist()] == flat and len(names) == len(set(flat))
    assert hashed.owner.tolist() == [i for i, c in enumerate(cut) for _ in c]
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert (hashed.wholes[i] == hashed.wholes[j]) == (letters(a) == letters(b))


def test_hashes_do_not_depend_on_the_other_texts_of_a_chunk() -> None:
    texts = ["one two three", "", "Ünter den Linden, 1899!", "x" * 3000 + " two", "--"]
    together = hash_texts(texts)
    for i, text in enumerate(texts):
        alone = hash_texts([text])
        assert alone.words.tolist() == together.words[together.owner == i].tolist()
        assert alone.wholes[0] == together.wholes[i]


def test_case_punctuation_and_space_fall_away_but_not_letters() -> None:
    a, b, c, d = hash_texts(["Don’t  stop!", "don't\nSTOP", "dont stop", "do not stop"]).wholes
    assert a == b == c != d


def test_ideographs_are_words_of_their_own_and_marks_part_of_one() -> None:
    assert hash_texts(["不要停止", "हिन्दी भाषा", "รัก"]).lengths.tolist() == [4, 2, 3]


def test_a_lone_surrogate_is_no_crash() -> None:
    assert hash_texts(["a \ud800 b"]).lengths.tolist() == [2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_runs_stay_within_their_text(n: int) -> None:
    texts = ["a b c d", "c d", "", "b c", "a"]
    hashes, owner = grams(hash_texts(texts), n)
    found = {i: hashes[owner == i].tolist() for i in range(len(texts))}
    spelled: dict[int, tuple[str, ...]] = {}
    for i, text in enumerate(texts):
        cut = words(text)
        expected = [tuple(cut[k : k + n]) for k in range(len(cut) - n + 1)]
        assert len(found[i]) == len(expected)
        for value, run in zip(found[i], expected, strict=True):
            assert spelled.setdefault(value, run) == run
    assert len(set(spelled.values())) == len(spelled)


def test_short_texts_are_one_run_where_that_is_wanted() -> None:
    hashed = hash_texts(["a b", "A, b!", "", "a b c d"])
    hashes, owner = grams(hashed, 3, short=True)
    assert owner.tolist() == [0, 1, 3, 3]
    assert hashes[0] == hashes[1] and len(set(hashes.tolist())) == 3
    assert grams(hashed, 3)[1].tolist() == [3, 3]


def test_chunks_hold_whole_texts_in_order() -> None:
    texts = ["aaa", "bb", "cccccccc", "", "d"]
    cut = list(chunks(texts, size=5))
    assert [(at, list(some)) for at, some in cut] == [(0, ["aaa", "bb"]), (2, ["cccccccc"]), (3, ["", "d"])]
    assert list(chunks([])) == []


def test_normalised_folds_forms_and_case() -> None:
    assert normalised("ﬁn STRASSE ①") == "fin strasse 1"
    assert np.array_equal(hash_texts(["straße"]).wholes, hash_texts(["STRASSE"]).wholes)
