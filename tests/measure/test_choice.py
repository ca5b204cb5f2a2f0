"""Scores of answers against one whole forward for each, and calibration against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import DataError
from limbeck.measure.choice import calibrate, choose, fit_prompt, score_choices
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding
from tests.reference.small_model import MODERN
from tests.reference.task_models import small

PROMPTS = [[5, 9, 20], [7], [30, 31, 32, 33, 34, 35], [5, 9]]
ANSWERS = [[40, 41, 42], [43], [40, 44]]


def _slow(model: Decoder, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(Batch.of_ids(torch.tensor([prompt + answer])))[0].log_softmax(dim=-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize(
    "over", [{}, MODERN, {**MODERN, "pattern": Sliding(window=4)}], ids=["gpt2", "llama", "rolling"]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_whole_forwards(over: dict, batch_size: int) -> None:
    model = small(**over).double()
    found = score_choices(model, PROMPTS, ANSWERS, batch_size=batch_size)
    expected = np.array([[_slow(model, p, a) for a in ANSWERS] for p in PROMPTS])
    assert found.log_probs == pytest.approx(expected, abs=1e-10)
    for prompt, top, sure in zip(PROMPTS, found.top, found.top_log_probs, strict=True):
        best = model(Batch.of_ids(torch.tensor([prompt])))[0, -1].detach().log_softmax(dim=-1).max(dim=-1)
        assert (top, sure) == (int(best.indices), pytest.approx(float(best.values), abs=1e-10))


def test_answers_of_one_token_need_no_second_forward() -> None:
    model, calls = small().double(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = score_choices(model, PROMPTS[:2], [[40], [43]])
    assert len(calls) == 1
    assert found.log_probs[1, 1] == pytest.approx(_slow(model, PROMPTS[1], [43]), abs=1e-10)


def test_the_order_of_prompts_changes_nothing() -> None:
    model = small().double()
    forward, backward = score_choices(model, PROMPTS, ANSWERS), score_choices(model, PROMPTS[::-1], ANSWERS)
    assert forward.log_probs == pytest.approx(backward.log_probs[::-1], abs=1e-12)


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([[1], []], ANSWERS, "prompt 1 is empty"),
        ([[1]], [[3]], "two answers or more"),
        ([[1]], [[3], [3]], "no two alike"),
        ([[1]], [[3], []], "a token at least"),
        (
            [[1]],
            [[3, 4], [5], [3]],
            r"one answer's tokens \[3\] begin another's \[3, 4\]: the shorter would always win",
        ),
        ([[1] * 127], ANSWERS, "prompt 0 has 127 tokens and answers up to 3"),
    ],
)
def test_what_cannot_be_scored_is_an_error(prompts: list, answers: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_choices(small(), prompts, answers)


def test_a_prompt_of_just_the_room_fits() -> None:
    assert score_choices(small(), [[1] * 126], ANSWERS).log_probs.shape == (1, 3)
    assert fit_prompt([0, 1, 2, 3, 4], 3, first=1) == [0, 3, 4]
    assert fit_prompt([0, 1, 2], 3, first=1) == [0, 1, 2]
    assert fit_prompt([0, 1, 2, 3], 2) == [2, 3]


def test_calibration_divides_by_what_empty_inputs_prefer() -> None:
    p = np.array([[0.6, 0.2], [0.1, 0.3]])
    free = np.array([[0.4, 0.1], [0.3, 0.3]])
    prior = (np.array([0.8, 0.2]) + np.array([0.5, 0.5])) / 2
    expected = np.array([[0.75, 0.25], [0.25, 0.75]]) / prior
    assert np.exp(calibrate(np.log(p), np.log(free))) == pytest.approx(expected)
    assert choose(np.log(p)).tolist() == [0, 1]


def test_calibration_turns_a_constant_answer_into_a_choice() -> None:
    """A model that always prefers the first answer, but less so after some prompts."""
    scores = np.log(np.array([[0.9, 0.1], [0.7, 0.3]]))
    assert choose(scores).tolist() == [0, 0]
    assert choose(calibrate(scores, np.log(np.array([[0.8, 0.2]])))).tolist() == [0, 1]
