from __future__ import annotations

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.measure.diversity import corpus_distinct, distinct, distinct_columns, self_bleu
from limbeck.measure.overlap import sentence_bleu
from limbeck.measure.scores import Scores


def test_distinct_counts_within_texts():
    texts = ["a b a b", "c d", "e"]
    found = Scores.of("xyz", **distinct_columns(texts))
    assert found["distinct_2"].tolist() == [2, 1, 0] and found["grams_2"].tolist() == [3, 1, 0]
    assert distinct().value(found) == 3 / 4 and distinct().name == "distinct-2"
    ones = Scores.of("xyz", **distinct_columns(texts, order=1))
    assert distinct(1).value(ones) == 5 / 7


def test_corpus_distinct_counts_across_texts():
    assert corpus_distinct(["a b", "a b"], order=1) == 0.5
    assert corpus_distinct(["a b", "a b"]) == 0.5
    assert corpus_distinct(["a.b"], order=1, tokeniser="space") == 1
    assert corpus_distinct(["a"]) == 0


def test_self_bleu_is_high_where_all_say_the_same():
    same = ["the cat sat on the mat"] * 3
    assert self_bleu(same).tolist() == pytest.approx([100, 100, 100])
    other = ["the cat sat on the mat", "dogs ran off into green woods", "we ate warm bread at noon"]
    assert self_bleu(other).max() < 10
    assert self_bleu(other).tolist() == pytest.approx(
        [sentence_bleu([t], [[o for o in other if o != t]])[0] for t in other]
    )


def test_self_bleu_of_a_sample_of_references():
    texts = [f"one two three {n} five six {n % 3} eight" for n in range(12)]
    few = self_bleu(texts, limit=2)
    assert np.array_equal(few, self_bleu(texts, limit=2)) and few.mean() < self_bleu(texts).mean()
    assert not np.array_equal(few, self_bleu(texts, limit=2, seed=1))
    with pytest.raises(DataError, match="two at least"):
        self_bleu(["a"])
