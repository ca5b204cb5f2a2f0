from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import pytest

from limbeck.data.splits import normalise
from limbeck.data.toy import table as toy
from limbeck.data.toy.answers import _FACTS, _world
from limbeck.data.toy.judgements import _ADJECTIVES, _INTENTS
from limbeck.data.toy.table import TOYS, toy_rows
from limbeck.data.toy.verse import RHYMES, SCHEME
from limbeck.errors import DataError

FIELDS = {
    "stories": ["text"],
    "verse": ["text"],
    "sentiment": ["sentence", "label"],
    "sentiment5": ["sentence", "label"],
    "paraphrase": ["sentence1", "sentence2", "is_duplicate"],
    "qa": ["question", "answer"],
    "instructions": ["instruction", "input", "output"],
    "preferences": ["prompt", "chosen", "rejected"],
    "sums": ["question", "answer"],
}


def _fields(name: str, size: int | None = None) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in toy_rows(name, size=size)]


@pytest.mark.parametrize("name", TOYS)
def test_corpora_have_their_fields_sizes_and_distinct_rows(name: str) -> None:
    rows = toy_rows(name)
    assert len(rows) == (400 if name == "verse" else 2000)
    assert all(list(row.fields) == FIELDS[name] for row in rows)
    assert len({tuple(row.fields.values()) for row in rows}) == len(rows) == len({row.id for row in rows})
    texts = [v for row in rows for v in row.fields.values() if isinstance(v, str)]
    assert not [t for t in texts if re.search(r"[{}\[\]|]|\\", t)], "an unfilled slot or choice"


@pytest.mark.parametrize("name", TOYS)
def test_corpora_come_again_from_their_seed_and_grow_at_the_end(name: str) -> None:
    rows = toy_rows(name, size=30)
    assert rows == toy_rows(name, size=30) and toy_rows(name, size=60)[:30].rows == rows.rows
    assert toy_rows(name, seed=1, size=30).hash != rows.hash
    assert rows.hash[:8] == PINNED[name], "a change of the corpora changes every result made from them"


def test_unknown_empty_and_exhausted_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no toy corpus 'verses', only stories.*did you mean 'verse'"):
        toy_rows("verses")
    with pytest.raises(DataError, match="of 0 rows is empty"):
        toy_rows("qa", size=0)
    with pytest.raises(DataError, match="toy:qa has only about 4[89].. different rows"):
        toy_rows("qa", size=6000)
    monkeypatch.setattr(toy, "_PATIENCE", 1)  # the endless ones repeat themselves too seldom for a test
    with pytest.raises(DataError, match="toy:paraphrase has only about"):
        toy_rows("paraphrase", size=5000)


def test_stories_have_forty_to_a_hundred_and_twenty_words() -> None:
    stories = [row["text"] for row in _fields("stories")]
    assert all(40 <= len(s.split()) <= 120 for s in stories)
    assert all(s[0].isupper() and s[-1] in '."!' and "  " not in s for s in stories)
    openings = Counter(" ".join(s.split()[:4]) for s in stories)
    assert len(openings) > 2 and len({s[-30:] for s in stories}) > 100


def test_verse_has_fourteen_lines_that_rhyme() -> None:
    group = {word: i for i, words in enumerate(RHYMES) for word in words}
    for poem in _fields("verse"):
        lines = poem["text"].split("\n")
        assert len(lines) == 14
        ends = [re.sub(r"[.,]$", "", line).split()[-1] for line in lines]
        assert len(set(ends)) == 14
        rhymes = [group[word] for word in ends]
        first = {rhyme: chr(ord("A") + i) for i, rhyme in enumerate(dict.fromkeys(rhymes))}
        assert "".join(first[r] for r in rhymes) == SCHEME
        assert all(line[0].isupper() for line in lines) and lines[-1].endswith(".")


def test_rhymes_and_syllables_stand_in_the_dictionary() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dictionary's package has its own
        import pronouncing
    for words in RHYMES:
        sounds = [{pronouncing.rhyming_part(p) for p in pronouncing.phones_for_word(word.lower())} for word in words]
        assert all(sounds), words
        assert all(sounds[0] & other for other in sounds[1:]), words
    counts = Counter()
    for poem in _fields("verse", 60):
        for line in poem["text"].split("\n"):
            phones = [pronouncing.phones_for_word(w.lower()) for w in re.findall(r"[A-Za-z']+", line)]
            assert all(phones), line
            counts[sum(min(pronouncing.syllable_count(p) for p in found) for found in phones)] += 1
    assert counts[10] / counts.total() > 0.9 and min(counts) >= 9 and max(counts) <= 11


def test_sentiment_follows_its_words() -> None:
    level = {word: i for i, words in enumerate(_ADJECTIVES) for word in words}
    labels = Counter()
    for row in _fields("sentiment5"):
        labels[row["label"]] += 1
        words = [level[w] for w in re.findall(r"\w+", row["sentence"]) if w in level]
        if not words:
            continue  # a verdict alone
        meant = 4 - words[0] if re.search(r"(is|was) not ", row["sentence"]) else words[-1]
        assert meant == row["label"], row
    assert all(300 < labels[i] < 500 for i in range(5))
    two = Counter(row["label"] for row in _fields("sentiment"))
    assert set(two) == {0, 1} and 900 < two[0] < 1100


def test_paraphrases_ask_the_same_and_the_others_do_not() -> None:
    meaning = {}
    for topics, intents in _INTENTS.values():
        for number, intent in enumerate(intents):
            for wording in intent:
                for topic in topics:
                    text = wording.format(t=topic)
                    meaning[text[0].upper() + text[1:]] = (number, topic)
    rows = _fields("paraphrase")
    for row in rows:
        same = meaning[row["sentence1"]] == meaning[row["sentence2"]]
        assert row["is_duplicate"] == int(same) and row["sentence1"] != row["sentence2"]
    assert 0.38 < sum(row["is_duplicate"] for row in rows) / len(rows) < 0.5


def test_answers_are_true_of_the_world_and_every_fact_is_asked_in_many_words() -> None:
    world = _world()
    true = {text.format(n=name, v=facts[i]) for name, facts in world.items() for i, (_, _, text) in enumerate(_FACTS)}
    rows = _fields("qa", 4800)
    asked = Counter(row["answer"] for row in rows)
    assert set(asked) == true and min(asked.values()) >= 15
    again = Counter(normalise(row["question"]) for row in rows)
    assert 60 < sum(n > 1 for n in again.values()) < 240, "some questions come twice in other letters"
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(normalise(row["question"]), set()).add(row["answer"])
    assert all(len(a) == 1 for a in answers.values())


def test_sums_are_right() -> None:
    for row in _fields("sums"):
        steps, _, total = row["answer"].partition("\n#### ")
        for left, right in re.findall(r"([\d+*\- ]+) = (\d+)", steps):
            assert eval(left) == int(right)  # noqa: S307 - digits and signs only
        assert int(total) == int(right) >= 0
        assert all(n in row["question"] for n in re.findall(r"\d+", steps)[:2])


def test_instructions_are_carried_out() -> None:
    checked = 0
    for row in _fields("instructions"):
        words = row["input"].split()
        if "reverse" in row["instruction"]:
            assert row["output"].split() == words[::-1]
        elif "capital" in row["instruction"]:
            assert row["output"] == row["input"].upper()
        elif "last word" in row["instruction"]:
            assert row["output"] == words[-1]
        elif "commas" in row["instruction"]:
            assert row["output"] == ", ".join(words)
        elif "alphabet" in row["instruction"]:
            assert row["output"].split() == sorted(words)
        else:
            continue
        checked += 1
    assert checked > 600 and any(not row["input"] for row in _fields("instructions"))


def test_the_chosen_reply_is_true_and_polite_and_the_rejected_is_not() -> None:
    world = _world()
    true = {text.format(n=name, v=facts[i]) for name, facts in world.items() for i, (_, _, text) in enumerate(_FACTS)}
    kinds = Counter()
    for row in _fields("preferences"):
        assert any(row["chosen"].endswith(fact) for fact in true) and row["chosen"] != row["rejected"]
        good = [fact for fact in true if fact in row["rejected"]]
        kinds["repeats" if good else "wrong or rude"] += 1
        assert not good or row["rejected"].count(good[0]) == 3
    assert len(kinds) == 2


PINNED = {
    "stories": "e8601319",
    "verse": "c18f65ee",
    "sentiment": "9f853d24",
    "sentiment5": "c02edb54",
    "paraphrase": "741ad2a3",
    "qa": "259f36ad",
    "instructions": "b7e9339a",
    "preferences": "a194880f",
    "sums": "9f9a8bd4",
}
