"""Paraphrase: cloze with a restricted and an open vocabulary, a head, and the course's predictions file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.batch import Batch
from limbeck.data.prompts import prompt_ids
from limbeck.data.rows import Row, Rows
from limbeck.data.toy.table import toy_rows
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.model.decoder import Decoder
from limbeck.objectives.classify import Classify
from limbeck.objectives.next_token import NextToken
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.task import Measuring, Result
from tests.reference.task_models import small, tokenizer

QUORA = """\tid\tsentence1\tsentence2\tis_duplicate
1\taa\tHow?\tIn what way?\t1.0
2\tbb\tWho?\tWhen?\t0.0
3\tcc\tWhy?\tHow?\t
"""
NO, YES = (tokenizer().encode(w)[0] for w in (" no", " yes"))


def _rows(count: int = 6) -> Rows:
    return toy_rows("paraphrase", size=count)


def _always(token: int) -> Decoder:
    """A model whose likeliest next token is always ``token``."""
    model = small(tied=False)

    class Constant(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*hidden.shape[:-1], model.config.vocab_size)
            logits[..., token] = 5.0
            logits[..., YES] += 1.0
            return logits

    model.head = Constant()  # type: ignore[assignment]
    return model


def _evaluate(task: Paraphrase, model: Decoder, rows: Rows | None = None) -> Result:
    return task.evaluate(model, tokenizer(), rows or _rows(), Measuring(batch_size=4), Decoding())


def test_quora_is_read_and_rows_without_label_are_counted(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(QUORA)
    rows = Paraphrase().read(str(tmp_path / "q.csv"), columns={}, limit=None, separator="")
    assert [r.id for r in rows] == ["aa", "bb"] and rows.dropped == ("cc",)
    result = _evaluate(Paraphrase(), small(), rows)
    assert result.notes["dropped_rows"] == 1
    assert result.scores["true:1"].tolist() == [1.0, 0.0]


def test_cloze_learns_the_answer_alone() -> None:
    task, rows = Paraphrase(), _rows()
    examples, _ = task.encode(rows, tokenizer(), 128)
    for row, example in zip(rows, examples, strict=True):
        assert example.predictions == 1 and example.target[-1]
        assert example.ids[-1] == (YES if row.fields["is_duplicate"] else NO)
    assert task.objective() == NextToken()


def test_restricted_takes_the_likelier_answer_and_open_the_likeliest_token() -> None:
    rows = _rows()
    restricted, free = Paraphrase(), Paraphrase(vocabulary="open")
    other = _always(tokenizer().encode("the")[0])
    assert set(_evaluate(restricted, other).predictions.values()) == {"1"}
    result = _evaluate(free, other)
    assert set(result.predictions.values()) == {"none"} and not result.scores["correct"].any()
    assert f"{len(rows)} none of them" in result.notes["told"][0]
    assert (result.scores["confidence"] > 0.2).all()  # of what it would say, not of the answers
    assert (result.scores["nll"] > _evaluate(restricted, other).scores["nll"]).all()
    assert set(_evaluate(free, _always(NO)).predictions.values()) == {"0"}


def test_the_beginning_of_an_answer_is_not_the_answer() -> None:
    """Under an open vocabulary " no" alone is not " no way", as "B" is not "Berlin"."""
    task = Paraphrase(answers=(" no way", " yes"), vocabulary="open")
    assert tokenizer().encode(" no way")[0] == NO and len(tokenizer().encode(" no way")) > 1
    assert set(_evaluate(task, _always(NO)).predictions.values()) == {"none"}
    assert set(_evaluate(task, _always(YES)).predictions.values()) == {"1"}


def test_cloze_scores_equal_single_forwards() -> None:
    model, task, rows = small().double(), Paraphrase(), _rows()
    result = _evaluate(task, model, rows)
    for i, row in enumerate(rows):
        ids = prompt_ids(row, task.template, tokenizer())
        with torch.no_grad():
            logits = model(Batch.of_ids(torch.tensor([ids])))[0, -1, [NO, YES]].log_softmax(dim=-1)
        assert result.scores["nll"][i] == pytest.approx(-float(logits[row.fields["is_duplicate"]]), abs=1e-10)


def test_with_a_head() -> None:
    task = Paraphrase(method="head", pool="mean")
    with pytest.raises(ConfigError, match="fine-tune it on the task first"):
        task.check(small())
    model = task.prepare(small())
    examples, _ = task.encode(_rows(), tokenizer(), 128)
    assert task.objective() == Classify("mean") and {e.label for e in examples} == {0, 1}
    assert _evaluate(task, model).protocol["method"] == "head"
    with pytest.raises(ConfigError, match="set the task's method to head"):
        Paraphrase().check(model)


def test_answers_of_several_tokens_that_begin_alike() -> None:
    alike = Paraphrase(answers=(" no way", " no doubt"))
    assert set(_evaluate(alike, small()).predictions.values()) <= {"0", "1"}
    with pytest.raises(ConfigError, match="cannot be told apart by the next one"):
        _evaluate(Paraphrase(answers=(" no way", " no doubt"), vocabulary="open"), small())


def test_a_prompt_longer_than_the_context_is_cut_and_counted() -> None:
    assert _evaluate(Paraphrase(), small(context=16)).notes["truncated"] == 6
    assert _evaluate(Paraphrase(), small()).notes["truncated"] == 0


def test_the_course_file_and_back(tmp_path: Path) -> None:
    """The course reads ``id, label`` lines below its header; its cloze models write GPT-2's ids of no and yes."""
    rows, file = _rows(), tmp_path / "para.csv"
    result = _evaluate(Paraphrase(), small(), rows)
    Paraphrase().write_predictions(result, file)
    header, *lines = file.read_text().split("\n")
    assert header == "id \t Predicted_Is_Paraphrase "
    codes = {"0": "3919", "1": "8505"}
    assert lines == [*(f"{r.id}, {codes[result.predictions[r.id]]} " for r in rows), ""]
    assert Paraphrase().read_predictions(file, rows) == result.predictions
    Paraphrase(course_labels="classes").write_predictions(result, file)
    assert file.read_text().split("\n")[1] == f"{rows[0].id}, {result.predictions[rows[0].id]} "
    assert Paraphrase().read_predictions(file, rows) == result.predictions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id \t Predicted_Sentiment \nx, 1 \n", "begins with 'id \t Predicted_Sentiment'"),
        ("id \t Predicted_Is_Paraphrase \nx 1 \n", "line 2 of .* is no 'id, label'"),
        ("id \t Predicted_Is_Paraphrase \nx, 1 \nx, 0 \n", "its id stands twice"),
        ("id \t Predicted_Is_Paraphrase \nx, 7 \n", "gives 'x' the label '7', none of 3919, 8505, 0, 1, -1"),
        (
            "id \t Predicted_Is_Paraphrase \nx, 1 \n",
            "of another split: of 1 items, 1 are missing .'y'., and 1 are no items",
        ),
    ],
)
def test_a_file_that_is_not_of_this_split_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    rows = Rows.of([Row("y", {"sentence1": "a", "sentence2": "b", "is_duplicate": 0})], "made")
    with pytest.raises(DataError, match=message):
        Paraphrase().read_predictions(tmp_path / "p.csv", rows)
    with pytest.raises(DataError, match="cannot be read"):
        Paraphrase().read_predictions(tmp_path / "missing.csv", rows)


@pytest.mark.realdata
def test_the_real_file_is_read(real_data: Path) -> None:
    rows = Paraphrase().read(str(real_data / "quora" / "quora-dev.csv"), columns={}, limit=None, separator="")
    assert (len(rows), len(rows.dropped)) == (20212, 2)
    truth = np.array([float(r.fields["is_duplicate"]) for r in rows])
    assert int(truth.sum()) == 7585
