"""The task of instructions: likelihood of every answer, the limit of generations, and what the model is asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from limbeck.data.chat import ChatTemplate, Message
from limbeck.decode import generate as decoding
from limbeck.tasks import instructions as module
from limbeck.tasks.instructions import Instructions
from limbeck.tasks.task import Measuring
from tests.reference.pairs import slow_log_prob
from tests.reference.task_models import small, tokenizer

TASK = Instructions()
ROWS = TASK.read("toy:instructions", columns={}, limit=12, separator="")


def test_likelihood_is_that_of_each_row_alone() -> None:
    model = small(context=400)
    found = TASK.evaluate(model, tokenizer(), ROWS, Measuring(generate=False), TASK.decoding())
    examples, _ = TASK.encode(ROWS, tokenizer(), 400)
    want = [-slow_log_prob(model, e).item() for e in examples]
    assert found.scores["nll"] == pytest.approx(np.array(want), rel=1e-5)
    assert [s.name for s in TASK.statistics(found.scores.columns)] == ["nats per token", "perplexity"]
    assert not found.predictions and found.protocol["limit_tokens"] is None


def test_it_is_asked_twice_with_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def spy(model: Any, tok: Any, prompts: Any, how: Any, **options: Any) -> Any:
        asked.append((prompts, how))
        return decoding.generate(model, tok, prompts, how, **options)

    monkeypatch.setattr(module, "generate", spy)
    found = TASK.evaluate(small(context=400), tokenizer(), ROWS, Measuring(), TASK.decoding())
    template = ChatTemplate.named("turns", tokenizer())
    lengths = [len(tokenizer().encode(f" {row.fields['answer']}")) + 1 for row in ROWS]
    limit = math.ceil(2 * np.percentile(lengths, 95))
    assert found.scores["reference"].tolist() == lengths
    assert found.protocol["limit_tokens"] == limit
    (prompts, sampled), (again, greedy) = asked
    assert prompts == again == [template.prompt_ids([Message("user", row.fields["prompt"])]) for row in ROWS]
    assert (sampled.temperature, greedy.temperature) == (0.7, 0.0)
    assert sampled.max_new_tokens == greedy.max_new_tokens == limit
    assert found.predictions.keys() == {row.id for row in ROWS}
    written = found.scores["written"].sum() / sum(lengths)
    figures = {s.name: s.value(found.scores) for s in TASK.statistics(found.scores.columns)}
    assert figures["length ratio, sampled"] == pytest.approx(written)
    assert figures["stop rate, sampled"] == found.scores["ended"].mean()


def test_half_of_the_context_is_the_most_that_is_written() -> None:
    found = TASK.evaluate(small(context=16), tokenizer(), ROWS, Measuring(), TASK.decoding())
    assert found.protocol["limit_tokens"] == 8 and found.notes["truncated"] == len(ROWS)


def test_without_ends_nothing_but_the_answer_is_learned() -> None:
    plain, _ = TASK.encode(ROWS, tokenizer(), 400)
    endless, _ = Instructions(end=False).encode(ROWS, tokenizer(), 400)
    for a, b in zip(plain, endless, strict=True):
        assert a.ids.tolist() == [*b.ids.tolist(), tokenizer().eos_id] and a.target[:-1].tolist() == b.target.tolist()
