"""GSM8K: what is learned, what is shown, and how what was generated is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.rows import Row, Rows
from limbeck.decode.generate import Generation
from limbeck.errors import DataError
from limbeck.tasks import gsm8k
from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.task import Measuring, Result
from tests.reference.task_models import small, tokenizer

ROWS = Rows.of(
    [
        Row("a", {"question": "Two and two?", "answer": "2+2=4\n#### 4"}),
        Row("b", {"question": "Half of nine?", "answer": "9/2=4.5\n#### 4.5"}),
        Row("c", {"question": "A thousand and one?", "answer": "#### 1,001"}),
    ],
    "made",
)


def _evaluate(task: GSM8K, rows: Rows = ROWS, **over: Any) -> Result:
    decoding = task.decoding().model_copy(update={"max_new_tokens": 6})
    return task.evaluate(small(**over), tokenizer(), rows, Measuring(batch_size=2), decoding)


def test_a_model_generates_and_its_protocol_says_how() -> None:
    result = _evaluate(GSM8K())
    assert set(result.predictions) == {"a", "b", "c"}
    assert {"strict", "flexible", "has_answer", "ended", "nll", "tokens"} == set(result.scores.columns)
    assert [s.name for s in GSM8K().statistics(result.scores.columns)][:2] == [
        "exact match, strict",
        "exact match, flexible",
    ]
    assert result.protocol["decoding"]["max_new_tokens"] == 6
    alone = GSM8K().evaluate(small(), tokenizer(), ROWS, Measuring(generate=False), GSM8K().decoding())
    assert [s.name for s in GSM8K().statistics(alone.scores.columns)] == ["nats per token"]


def test_generated_texts_are_scored_strictly_and_flexibly(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ["so 4 it is", "#### 4.50", "#### 1001 of 7"]

    def generate(*args: Any, **named: Any) -> Sequence[Sequence[Generation]]:
        return [[Generation((1,), text, "end", 0.0, 0.0)] for text in written]

    monkeypatch.setattr(gsm8k, "generate", generate)
    scores = _evaluate(GSM8K()).scores
    assert scores["strict"].tolist() == [0, 1, 1]
    assert scores["flexible"].tolist() == [1, 1, 0]
    assert scores["has_answer"].tolist() == [0, 1, 1]


def test_solved_problems_are_shown_and_long_prompts_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(
        '{"question": "One {x}?", "answer": "1\\n#### 1"}\n{"question": "TWO and two?", "answer": "#### 4"}\n'
    )
    seen: list[str] = []

    def generate(model: Any, tok: Any, prompts: Sequence[Sequence[int]], *args: Any, **named: Any) -> Any:
        seen.extend(tok.decode(p) for p in prompts)
        return [[Generation((1,), "", "length", 0.0, 0.0)] for _ in prompts]

    monkeypatch.setattr(gsm8k, "generate", generate)
    result = _evaluate(GSM8K(shots=1, examples=str(file)))
    assert seen[0] == "Question: One {x}?\nAnswer: 1\n#### 1\n\nQuestion: Two and two?\nAnswer:"
    assert result.notes["prompts_cut"] == 0 and not result.scores["ended"].any()
    with pytest.raises(DataError, match="has 1 rows that are not measured, and 2 are to be shown"):
        _evaluate(GSM8K(shots=2, examples=str(file)))  # one of them is measured
    assert _evaluate(GSM8K(shots=1, examples=str(file)), context=48).notes["prompts_cut"] > 0


def test_a_solution_without_a_number_is_an_error() -> None:
    rows = Rows.of([Row("x", {"question": "Why?", "answer": "because"})], "made")
    with pytest.raises(DataError, match="the solution of row x of made holds no one clear number"):
        _evaluate(GSM8K(), rows)


def test_the_solution_and_the_end_are_learned() -> None:
    (example, *_), _ = GSM8K().encode(ROWS, tokenizer(), 128)
    learned = [int(i) for i, t in zip(example.ids, example.target, strict=True) if t]
    assert tokenizer().decode(learned) == " 2+2=4\n#### 4" and learned[-1] == tokenizer().eos_id
