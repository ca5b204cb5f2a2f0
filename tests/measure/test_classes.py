"""Figures of a classifier against their definitions, and resampled as sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from limbeck.errors import DataError
from limbeck.measure.classes import class_columns, class_counts, class_statistics, collapse
from limbeck.measure.scores import Scores

LABELS = ("neg", "mid", "pos")


def _slow_macro_f1(truth: list[int], predicted: list[int]) -> float:
    values = []
    for c in set(truth) | {p for p in predicted if p >= 0}:
        tp = sum(t == p == c for t, p in zip(truth, predicted, strict=True))
        fp = sum(p == c != t for t, p in zip(truth, predicted, strict=True))
        fn = sum(t == c != p for t, p in zip(truth, predicted, strict=True))
        values.append(2 * tp / (2 * tp + fp + fn))
    return sum(values) / len(values)


def _scores(truth: list[int], predicted: list[int], labels: tuple[str, ...] = LABELS) -> Scores:
    return Scores.of([str(i) for i in range(len(truth))], **class_columns(truth, predicted, labels))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=30))
def test_figures_equal_their_definitions(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    scores = _scores(truth, predicted)
    found = {s.name: s.value(scores) for s in class_statistics(scores.columns)}
    assert list(found) == ["accuracy", "macro F1", "majority rate"]
    assert found["accuracy"] == pytest.approx(np.mean(np.array(truth) == np.array(predicted)))
    assert found["macro F1"] == pytest.approx(_slow_macro_f1(truth, predicted))
    assert found["majority rate"] == pytest.approx(max(map(truth.count, range(3))) / len(truth))
    for s in class_statistics(scores.columns):  # many sums at once, and no dependence on their scale
        sums = s.table(scores).sum(axis=0)
        assert s.of_sums(np.stack([sums, 7 * sums])) == pytest.approx([found[s.name]] * 2)


def test_two_classes_also_have_the_f1_of_the_second() -> None:
    scores = _scores([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], ("0", "1"))
    figures = {s.name: s.value(scores) for s in class_statistics(scores.columns)}
    assert figures["F1"] == pytest.approx(0.5)


def test_counts_and_sentences() -> None:
    counts = class_counts(_scores([0, 0, 1, 0], [0, 1, 1, -1]))
    assert counts.describe()["predicted"] == {"neg": 1, "mid": 2, "pos": 0, "(none of them)": 1}
    wanted = (entropy([1, 2, 0, 1]), entropy([3, 1, 0]))
    assert counts.entropies == pytest.approx(wanted, abs=1e-12)
    assert counts.accuracy == 0.5 and counts.majority == ("neg", 0.75)
    assert counts.sentences() == (
        "predicted neg: 1 (true 3), mid: 2 (true 1), pos: 0 (true 0), 1 none of them; entropy 1.04 nats (true 0.56)",
        "no item is of class pos",
        "accuracy 0.500 is not above 0.750, that of always answering 'neg'",
    )


def test_bad_input_is_an_error() -> None:
    with pytest.raises(DataError, match="2 predictions for 1 items"):
        class_columns([0], [0, 1], LABELS)
    with pytest.raises(DataError, match="outside 0 to 2"):
        class_columns([3], [0], LABELS)


def test_collapse_takes_a_share_and_an_entropy() -> None:
    assert (
        collapse({"a": 50, "b": 50}, {"a": 97, "b": 3})
        == "collapsed: 97 of 100 predictions are 'a', which is true of 50.0%"
    )
    assert collapse({"a": 50, "b": 50}, {"a": 90, "b": 10}) is None
    assert collapse({"a": 97, "b": 3}, {"a": 98, "b": 2}) is None  # the set itself is so
    assert collapse({"a": 4, "b": 3}, {"a": 7, "b": 0}) is None  # too few to tell
