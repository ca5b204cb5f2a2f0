from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import DataError
from limbeck.measure.scores import Scores, align

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def some() -> Scores:
    return Scores.of(["a", "b", "c"], nll=[1.5, 2.0, 0.25], tokens=[3, 4, 1])


@given(rows=st.dictionaries(st.text(min_size=1), st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_what_is_written_is_read(rows, tmp_path_factory):
    scores = Scores.of(rows, x=[a for a, _ in rows.values()], y=[b for _, b in rows.values()])
    file = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    scores.write(file)
    back = Scores.read(file)
    assert back.ids == tuple(rows) and back.rows() == scores.rows()


def test_rows_and_columns():
    scores = some()
    assert len(scores) == 3 and scores["nll"].tolist() == [1.5, 2.0, 0.25]
    assert scores.rows()[1] == {"id": "b", "nll": 2.0, "tokens": 4.0}
    with pytest.raises(DataError, match="no score 'nl' among nll, tokens; did you mean 'nll'"):
        scores["nl"]


def test_select_and_join():
    scores = some()
    assert scores.select(["c", "a"]).rows() == [scores.rows()[2], scores.rows()[0]]
    joined = scores.join(Scores.of(["c", "a", "b"], chrf=[3, 1, 2]))
    assert joined["chrf"].tolist() == [1, 2, 3] and joined["nll"].tolist() == scores["nll"].tolist()
    with pytest.raises(DataError, match="'nll' was measured twice"):
        scores.join(scores)


def test_align_orders_by_id():
    a, b = some(), some().select(["b", "c", "a"])
    first, second = align(a, b)
    assert first is a and second.rows() == a.rows()
    assert align(a, a) == (a, a)


def test_align_names_what_is_missing_unless_told_to_intersect():
    a = Scores.of(list("abcdef"), x=range(6))
    b = Scores.of(["a", "z"], x=[0, 1])
    with pytest.raises(DataError, match=r"5 only in the first \('b', 'c', 'd', \.\.\.\), 1 only in the second \('z'\)"):
        align(a, b)
    first, second = align(a, b, intersect=True)
    assert first.ids == second.ids == ("a",)
    with pytest.raises(DataError, match="share no item"):
        align(a, Scores.of(["q"], x=[1]), intersect=True)


@pytest.mark.parametrize(
    ("ids", "columns", "word"),
    [
        ([], {"x": []}, "without items"),
        (["a", "a"], {"x": [1, 2]}, "'a' has two rows"),
        (["a", "b"], {"x": [1]}, "1 values for 2 items"),
        (["a", "b"], {"x": [1, np.nan]}, "'x' of item 'b' is nan"),
        (["a"], {"x": [np.inf]}, "is inf"),
    ],
)
def test_bad_scores(ids, columns, word):
    with pytest.raises(DataError, match=word):
        Scores.of(ids, **columns)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"x": 1}\n', "row 1 of .* has no 'id'"),
        ('{"id": "a", "x": 1}\n{"id": "b"}\n', "row 2 of .* differs .* 'x'"),
        ('{"id": "a", "x": "1"}\n', "'x' in row 1 of .* is no number"),
        ('{"id": "a", "x": true}\n', "is no number"),
        ("{\n", "line 1 of scores file"),
        ("[1]\n", "line 1 of scores file"),
        ("", "without items"),
    ],
)
def test_bad_files(tmp_path, text, word):
    file = tmp_path / "s.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=word):
        Scores.read(file)
    with pytest.raises(DataError, match="cannot be read"):
        Scores.read(tmp_path / "none.jsonl")
