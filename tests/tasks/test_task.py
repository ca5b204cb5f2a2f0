"""What every task shares: the table, predictions as JSON, and labels as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.tasks.classification import encode_texts
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.table import TASKS, AnyTask
from limbeck.tasks.task import Result, Task
from tests.reference.task_models import class_rows, small, tokenizer


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_in_the_union_under_its_name(name: str) -> None:
    task: Task = TypeAdapter(AnyTask).validate_python({"kind": name})
    assert type(task) is TASKS[name] and task.name == name
    assert TypeAdapter(AnyTask).validate_python(task.model_dump(mode="json")) == task


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_prepares_a_model_that_it_then_accepts(name: str) -> None:
    task = TASKS[name]()
    task.check(task.prepare(small()))


def test_predictions_without_a_published_format_are_json_and_belong_to_a_split(tmp_path: Path) -> None:
    task, file = QuestionAnswering(), tmp_path / "p.json"
    rows = class_rows([0, 1])
    result = Result(Scores.of(["r0", "r1"], f1=[0.0, 1.0]), {}, predictions={"r1": "é b", "r0": "a"})
    task.write_predictions(result, file)
    assert list(task.read_predictions(file, rows).items()) == [("r0", "a"), ("r1", "é b")]
    with pytest.raises(DataError, match="of another split: of 1 items, 1 are no items of it .'r1'"):
        task.read_predictions(file, rows[:1])
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match="is no JSON object of texts by item id"):
        task.read_predictions(file, rows)
    file.write_text("{")
    with pytest.raises(DataError, match="is no JSON object"):
        task.read_predictions(file, rows)


def test_a_begin_token_that_is_not_there_and_a_context_without_room() -> None:
    with pytest.raises(DataError, match="no room for a text"):
        encode_texts(class_rows([0]), ["good"], [0], tokenizer(), 1)
    marked, _ = encode_texts(class_rows([0]), ["good"], [0], tokenizer(), 8, begin=True)
    bare, _ = encode_texts(class_rows([0]), ["good"], [0], tokenizer(), 8, begin=False)
    assert len(marked[0]) == len(bare[0]) + 1 and marked[0].ids[0] == tokenizer().bos_id
