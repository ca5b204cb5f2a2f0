"""Sentiment: reading, labels, and what an evaluation tells."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.rows import Row, Rows
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.model.config import Classes
from limbeck.model.heads import with_classes
from limbeck.objectives.classify import Classify
from limbeck.tasks.sentiment import Sentiment
from limbeck.tasks.task import Measuring
from tests.reference.task_models import class_rows, small, tokenizer

COURSE = "\tid\tsentence\tsentiment\n0\taa1\t It 's lovely .\t3\n1\tbb2\t dull stuff .\t1\n2\tcc3\t no label here\t\n"
TWO = Sentiment(labels=("0", "1"))


def _read(task: Sentiment, source: Path, **columns: str) -> Rows:
    return task.read(str(source), columns=columns, limit=None, separator="")


def test_the_course_format_is_read_and_rows_without_label_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(COURSE)
    rows = _read(Sentiment(), tmp_path / "x.csv")
    assert [(r.id, r.fields["label"]) for r in rows] == [("aa1", "3"), ("bb2", "1")]
    assert rows.dropped == ("cc3",)


def test_another_column_can_be_named_and_a_missing_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sentence,stars\ngood,4\nbad,0\n")
    assert [r.fields["label"] for r in _read(Sentiment(), tmp_path / "x.csv", label="stars")] == ["4", "0"]
    with pytest.raises(DataError, match="no column 'label'"):
        _read(Sentiment(), tmp_path / "x.csv")


def test_a_label_outside_the_set_names_row_and_labels() -> None:
    with pytest.raises(DataError, match="row r1 of made has the label '2', which is none of 0, 1"):
        TWO.encode(class_rows(["1", "2"]), tokenizer(), 64)
    examples, _ = TWO.encode(class_rows([1, "0", 1.0, "0.0"]), tokenizer(), 64)
    assert [e.label for e in examples] == [1, 0, 1, 0]


def test_texts_end_with_the_end_token_and_long_ones_are_counted() -> None:
    rows = class_rows([0, 1], words="the plot of this long film was not good at all")
    examples, report = TWO.encode(rows, tokenizer(), 8)
    assert {len(e) for e in examples} == {8} and report.truncated == ("r0", "r1")
    assert all(e.ids[-1] == tokenizer().eos_id and not e.target.any() for e in examples)
    ends, _ = Sentiment(labels=("0", "1"), keep="end").encode(rows, tokenizer(), 8)
    assert ends[0].ids[0] != examples[0].ids[0]


def test_prepare_and_check() -> None:
    model = small()
    with pytest.raises(ConfigError, match="fine-tune it on the task first"):
        TWO.check(model)
    TWO.check(TWO.prepare(model))
    assert model.config.classes == Classes(labels=("0", "1"))
    assert TWO.objective() == Classify("last") and Sentiment(pool="mean").objective() == Classify("mean")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_single_forwards(batch_size: int) -> None:
    model = with_classes(small(), Classes(labels=("0", "1"), pool="mean")).double()
    torch.nn.init.normal_(model.head.weight)
    rows = class_rows([0, 1, 1, 0, 1])
    found = Sentiment().evaluate(model, tokenizer(), rows, Measuring(batch_size=batch_size), Decoding())
    alone = [
        Sentiment().evaluate(model, tokenizer(), rows[i : i + 1], Measuring(), Decoding()).scores["nll"][0]
        for i in range(5)
    ]
    assert found.scores["nll"] == pytest.approx(alone, abs=1e-10)
    assert found.protocol["labels"] == ["0", "1"] and found.protocol["pool"] == "mean"  # the model's, not the task's
    assert list(found.predictions) == [r.id for r in rows]


def test_a_constant_answer_and_a_set_of_one_class_are_told() -> None:
    model = with_classes(small(), Classes(labels=("0", "1")))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))
    half = TWO.evaluate(model, tokenizer(), class_rows([0, 1] * 6), Measuring(), Decoding())
    assert half.notes["told"][0] == "predicted 0: 0 (true 6), 1: 12 (true 6); entropy 0.00 nats (true 0.69)"
    assert half.notes["told"][1].startswith("collapsed: 12 of 12 predictions are '1', which is true of 50.0%")
    assert half.scores["confidence"] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)
    one = TWO.evaluate(model, tokenizer(), class_rows([1] * 12), Measuring(), Decoding())
    assert one.notes["told"][1:] == [
        "every item is of class '1': accuracy here says nothing about telling classes apart"
    ]


def test_predictions_in_the_course_format(tmp_path: Path) -> None:
    model = with_classes(small(), Classes(labels=("0", "1")))
    rows, file = class_rows([0, 1]), tmp_path / "p.csv"
    result = TWO.evaluate(model, tokenizer(), rows, Measuring(), Decoding())
    TWO.write_predictions(result, file)
    assert file.read_text().splitlines()[0] == "id \t Predicted_Sentiment "
    assert TWO.read_predictions(file, rows) == result.predictions
    with pytest.raises(DataError, match="is of another split: of 3 items, 1 are missing .'r2'"):
        TWO.read_predictions(file, class_rows([0, 1, 1]))


def test_an_empty_sentence_is_an_error() -> None:
    rows = Rows.of([Row("q", {"sentence": "  ", "label": 1})], "made")
    with pytest.raises(DataError, match="row q of made has no text"):
        TWO.encode(rows, tokenizer(), 16)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "classes", "rows"), [("sst", 5, 1101), ("cfimdb", 2, 245)])
def test_the_real_files_are_read(name: str, classes: int, rows: int, real_data: Path) -> None:
    task = Sentiment(labels=tuple(str(i) for i in range(classes)))
    found = _read(task, real_data / "cs224n" / f"ids-{name}-dev.csv")
    examples, report = task.encode(found, tokenizer(), 512)
    assert len(found) == rows == len(examples)
    assert set(np.unique([e.label for e in examples])) == set(range(classes))
    assert (len(report.truncated) > 0) == (name == "cfimdb")
