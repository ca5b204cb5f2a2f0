"""Continuations against one whole forward for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import DataError
from limbeck.measure import continuation
from limbeck.measure.continuation import score_continuations
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding
from tests.reference.small_model import MODERN
from tests.reference.task_models import small

PAIRS = [([5, 9, 20], [40, 41, 42]), ([7], [43]), ([7], [44]), ([5, 9, 20], [40]), ([5, 9], [20, 40]), ([1] * 60, [2])]


def slow(model: Decoder, context: list[int], wanted: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(Batch.of_ids(torch.tensor([context + wanted])))[0].log_softmax(dim=-1)
    rows = logits[len(context) - 1 : len(context) + len(wanted) - 1]
    return sum(float(rows[i, t]) for i, t in enumerate(wanted)), rows.argmax(dim=-1).tolist() == wanted


@pytest.mark.parametrize(
    "over", [{}, MODERN, {**MODERN, "pattern": Sliding(window=4)}], ids=["gpt2", "llama", "rolling"]
)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_whole_forwards(over: dict, batch_size: int) -> None:
    model = small(**over).double()
    best = int(model(Batch.of_ids(torch.tensor([[5, 9, 20]])))[0, -1].argmax())
    pairs = [*PAIRS, ([5, 9, 20], [best])]
    found = score_continuations(model, pairs, batch_size=batch_size)
    expected = [slow(model, *pair) for pair in pairs]
    assert found.log_probs == pytest.approx([value for value, _ in expected], abs=1e-10)
    assert found.greedy.tolist() == [hit for _, hit in expected]
    assert found.greedy[-1] and not found.greedy[:-1].all()


def test_pairs_that_read_the_same_tokens_share_a_forward() -> None:
    model, rows = small().double(), []
    model.register_forward_hook(lambda _m, given, _o: rows.append(given[0].ids.shape[0]))
    score_continuations(model, PAIRS)
    assert rows == [4]  # [7] twice; [5, 9, 20] before one token, and before the second of [20, 40]


def test_the_head_sees_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small().double(), []
    whole = score_continuations(model, PAIRS)
    monkeypatch.setattr(continuation, "chunk_size", lambda *_: 2)
    model.head.register_forward_hook(lambda _m, given, _o: rows.append(given[0].shape[0]))
    parts = score_continuations(model, PAIRS)
    assert max(rows) == 2 and sum(rows) == sum(len(wanted) for _, wanted in PAIRS)
    assert parts.log_probs == pytest.approx(whole.log_probs, abs=1e-12) and (parts.greedy == whole.greedy).all()


def test_the_whole_context_can_be_read_and_no_more() -> None:
    model = small()  # 128 tokens
    assert np.isfinite(score_continuations(model, [([1] * 100, [2] * 29)]).log_probs).all()
    with pytest.raises(DataError, match="pair 0 has 100 tokens of context and 30 to score, more than .* of 128"):
        score_continuations(model, [([1] * 100, [2] * 30)])


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_nothing_to_score_is_an_error(pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(DataError, match="pair 1 has an empty context or continuation"):
        score_continuations(small(), [([1], [2]), pair])
