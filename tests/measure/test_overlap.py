from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate import bleu_score
from sacrebleu.metrics import CHRF as SacreChrf

from limbeck.errors import DataError
from limbeck.measure.overlap import (
    BLEU,
    CHRF,
    CHRF_SIGNATURE,
    bleu_columns,
    chrf_columns,
    exact_match,
    sentence_bleu,
    token_f1,
    words,
)
from limbeck.measure.scores import Scores
from limbeck.measure.stats import interval

TEXT = st.text(alphabet="abc de.,'\n", max_size=25)
PAIRS = st.lists(st.tuples(TEXT, TEXT.filter(lambda t: t.strip() != "")), min_size=1, max_size=6)
METHOD4 = bleu_score.SmoothingFunction().method4


def scores(columns) -> Scores:
    return Scores.of(map(str, range(len(next(iter(columns.values()))))), **columns)


@given(PAIRS)
def test_chrf_is_sacrebleus(pairs):
    texts, right = [t for t, _ in pairs], [r for _, r in pairs]
    found = scores(chrf_columns(texts, right))
    assert CHRF.value(found) == pytest.approx(SacreChrf().corpus_score(texts, [right]).score, abs=1e-9)
    alone = [SacreChrf().sentence_score(t, [r]).score for t, r in pairs]
    assert found["chrf"].tolist() == pytest.approx(alone, abs=1e-12)


def test_chrf_of_several_references_takes_the_best():
    texts, right = ["the cat", "a dog"], [["a hat", "the cat"], ["a dog", "dogs"]]
    theirs = SacreChrf().corpus_score(texts, [["a hat", "a dog"], ["the cat", "dogs"]]).score
    assert CHRF.value(scores(chrf_columns(texts, right))) == pytest.approx(theirs) == pytest.approx(100)


def test_chrf_signature_is_sacrebleus():
    metric = SacreChrf()
    metric.corpus_score(["a"], [["a"]])
    theirs = dict(part.split(":") for part in str(metric.get_signature()).split("|"))
    assert dict(part.split(":") for part in CHRF_SIGNATURE.split("|")).items() <= theirs.items()


@given(PAIRS)
def test_bleu_is_nltks(pairs):
    texts, right = [t for t, _ in pairs], [r for _, r in pairs]
    found = scores(bleu_columns(texts, right))
    cut, others = [words(t) for t in texts], [[words(r)] for r in right]
    alone = [100 * bleu_score.sentence_bleu(o, c, smoothing_function=METHOD4) for c, o in zip(cut, others, strict=True)]
    assert found["bleu"].tolist() == pytest.approx(alone, abs=1e-12)
    whole = 100 * bleu_score.corpus_bleu(others, cut, smoothing_function=METHOD4)
    assert BLEU.value(found) == pytest.approx(whole, abs=1e-9)


def test_bleu_weights_and_tokeniser_change_it():
    texts, right = ["It's a cat."], ["It's the cat."]
    by_words = sentence_bleu(texts, right)
    assert by_words != sentence_bleu(texts, right, tokeniser="space")
    unigrams = sentence_bleu(texts, right, weights=(1.0,))
    assert unigrams[0] == pytest.approx(100 * 4 / 5) and words(texts[0]) == ["It", "'s", "a", "cat", "."]


@pytest.mark.parametrize(("columns", "statistic"), [(chrf_columns, CHRF), (bleu_columns, BLEU)])
def test_corpus_figures_are_resampled_from_their_counts(columns, statistic):
    """A bootstrap of sums gives what computing the figure anew on each drawn set gives."""
    texts = ["the cat sat on the mat", "a dog ran", "it was dark and cold that night", "so he said no"]
    right = ["the cat sat on a mat", "the dog ran off", "the night was dark and very cold", "and so he said no again"]
    found = scores(columns(texts, right))
    table = statistic.table(found)
    random = np.random.default_rng(0)
    for drawn in random.integers(4, size=(20, 4)):
        anew = statistic.value(scores(columns([texts[i] for i in drawn], [right[i] for i in drawn])))
        assert float(statistic.of_sums(table[drawn].sum(0))) == pytest.approx(anew, abs=1e-9)
    span = interval(found, statistic)
    assert span.low < span.value < span.high


def test_nothing_in_common_scores_nothing():
    for columns, statistic in ((chrf_columns, CHRF), (bleu_columns, BLEU)):
        assert statistic.value(scores(columns(["zzz"], ["abc"]))) == 0
        assert statistic.value(scores(columns([""], ["abc"]))) == 0


def test_exact_match_and_f1_are_squads():
    texts = ["The Paris.", "in  Paris", "", "berlin", "Berlin"]
    right = ["paris", "Paris", "", "Bonn", ["Bonn", "berlin"]]
    assert exact_match(texts, right).tolist() == [1, 0, 1, 0, 1]
    assert exact_match([" a "], ["a"], normalise=False).tolist() == [1]
    assert exact_match(["A"], ["a"], normalise=False).tolist() == [0]
    assert token_f1(texts, right).tolist() == pytest.approx([1, 2 / 3, 1, 0, 1])
    assert token_f1(["B"], ["Berlin"]).tolist() == [0]  # no credit for a part of a word
    assert token_f1(["B", "Berlin", "Ber lin"], ["Berlin", "B", "Berlin"]).tolist() == [0, 0, 0]
    assert exact_match(["B", "Berlin wall"], ["Berlin", "Berlin"]).tolist() == [0, 0]
    assert token_f1(["big big dog"], ["big dog dog"])[0] == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize("right", ["A", "the", "?", "-"])
def test_no_answer_is_credited_for_an_answer_that_normalising_would_empty(right):
    """SQuAD drops articles and punctuation; of the letter A or a sign nothing would be left for anything to differ."""
    others = ["", " ", "an", "B", "!", "..."]
    assert exact_match([right, *others], [right] * 7).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert token_f1([right, *others], [right] * 7).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert exact_match(["the A", "a cat"], ["A", "cat"]).tolist() == [0, 1]


def test_texts_without_references_are_refused():
    with pytest.raises(DataError, match="2 texts cannot be compared with 1"):
        chrf_columns(["a", "b"], ["a"])
    with pytest.raises(DataError, match="text 1 has no reference"):
        sentence_bleu(["a", "b"], [["a"], []])
