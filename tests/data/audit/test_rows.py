"""Text fields, empty rows, rows cut at one length, labels."""

from __future__ import annotations

import pytest

from limbeck.data.audit.rows import CutRows, is_empty, label_balance, text_fields, wordy_fields
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError


def rows(*fields: dict[str, object]) -> Rows:
    return Rows.of((Row(str(i), f) for i, f in enumerate(fields)), "set")


def cut_rows(some: Rows) -> tuple[str, ...]:
    looked = CutRows(("t",))
    for row in some:
        looked.add(row)
    return looked.found()


def test_text_fields_are_those_of_sentences() -> None:
    some = rows(
        {"id": "a b c d", "q": "who is it then", "label": "very good", "n": 1}, {"q": "", "label": "bad", "n": 2}
    )
    assert text_fields(some) == ("q",)
    assert text_fields(some, ("label",)) == ("label",)
    assert wordy_fields(rows({"t": "不要停止"})) == ("t",)
    with pytest.raises(DataError, match="no field 'lable' to audit, only id, q, label, n; did you mean 'label'"):
        text_fields(some, ("lable",))
    with pytest.raises(DataError, match="no field of set holds text"):
        text_fields(rows({"label": "good"}))


def test_empty_rows_are_named() -> None:
    some = rows({"t": "x"}, {"t": " \n"}, {}, {"t": None})
    assert [row.id for row in some if is_empty(row, ("t",))] == ["1", "2", "3"]


def test_rows_cut_at_one_length_are_named_and_whole_ones_not() -> None:
    long = [str(i) + "word" * (40 + i) for i in range(5)]
    cut = [{"t": text[:100]} for text in long]
    assert cut_rows(rows(*cut, {"t": "short"})) == ("0", "1", "2", "3", "4")
    assert cut_rows(rows(*({"t": text[:99] + "."} for text in long))) == ()  # sentences that end
    assert cut_rows(rows(*({"t": text} for text in long))) == ()  # lengths differ
    assert cut_rows(rows(*cut[:2], {"t": "x"})) == ()  # two may be chance
    assert cut_rows(rows(*({"t": "ab" * 20} for _ in range(9)))) == ()  # too short to have been cut


def test_rows_cut_at_a_number_of_words_are_named() -> None:
    words = [" ".join(f"{'w' * (i + 1)}{j}" for j in range(30)) for i in range(4)]
    assert cut_rows(rows(*({"t": w} for w in words))) == ("0", "1", "2", "3")


def test_labels_are_counted_and_texts_are_not_labels() -> None:
    some = rows(*({"t": f"a b c {i}", "y": i % 3 == 0, "score": i, "tags": ["x"]} for i in range(9)))
    assert label_balance(some, ("t",)) == {"y": {"False": 6, "True": 3}}
    assert list(label_balance(some, ("t",))["y"]) == ["False", "True"]
