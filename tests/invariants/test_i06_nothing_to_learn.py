"""I6: a row whose targets are all masked or cut away is an error that names it, or is counted: never a silent 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.data.batches import Batches
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.readers import read
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import DataError, NothingToLearnError

TOK = Tokenizer.train(["Why is that so long? Because."], 260)
QA = Template(prompt="{question}", answer="{answer}")
GOOD = Row("good", {"question": "Why?", "answer": "So.", "text": "some text"})
LONG = Row("long", {"question": "Why is that so long? " * 4, "answer": "Because."})
BLANK = Row("blank", {"question": "Why?", "answer": "", "text": ""})

CASES: list[tuple[Row, dict[str, Any]]] = [
    (LONG, {"template": QA, "truncate": "answer_right"}),
    (BLANK, {"template": QA}),
    (BLANK, {"template": QA, "end_token": False}),
    (BLANK, {}),
    (BLANK, {"bos": True, "end_token": True}),
    (Row("one", {"text": "x"}), {"end_token": False}),
]


@pytest.mark.parametrize(("bad", "how"), CASES)
def test_the_row_is_named(bad: Row, how: dict[str, Any]) -> None:
    with pytest.raises(NothingToLearnError, match=f"row {bad.id} of mine.csv has nothing to learn") as caught:
        encode_rows(Rows.of([GOOD, bad], "mine.csv"), TOK, 24, **how)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("bad", "how"), CASES)
def test_or_it_is_counted_and_every_batch_has_something_to_learn(bad: Row, how: dict[str, Any]) -> None:
    rows = Rows.of([GOOD, bad], "mine.csv")
    examples, report = encode_rows(rows, TOK, 24, on_empty="count", **how)
    assert report.empty == report.dropped == (bad.id,) and report.describe()["empty_ids"] == [bad.id]
    assert {e.id for e in examples} == {"good"} and all(e.predictions > 0 for e in examples)
    stream = Batches(examples, batch_size=1, context=24, pad_id=TOK.pad_id)
    assert all((stream.at(i).next_token_labels() >= 0).any() for i in range(stream.per_epoch))


@pytest.mark.parametrize(("bad", "how"), CASES)
def test_a_set_of_nothing_else_is_an_error_even_when_counting(bad: Row, how: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no row of mine.csv is left to learn from: of 1, 0 .* and 1 have no target"):
        encode_rows(Rows.of([bad], "mine.csv"), TOK, 24, on_empty="count", **how)


def test_from_a_file_the_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Why?", "answer": "So."}\n{"question": "Why?", "answer": " "}\n')
    with pytest.raises(NothingToLearnError, match="row mine:2 of .*mine.jsonl"):
        encode_rows(read(str(file), required=QA.fields), TOK, 24, template=QA)
