"""I1: K micro-batches of unequal length give the gradient of one full batch, each term by its own global count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from limbeck.data.batch import Batch, Example, collate
from limbeck.losses.terms import add_counts, total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.teacher import LiveTeacher

V = 40


def decoder(seed: int, layers: int = 1) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(vocab_size=V, context=32, layers=layers, hidden_size=16, heads=2)).double()
    with torch.no_grad():
        model.embed.weight.mul_(10)
    return model


STUDENT, TEACHER = decoder(0), LiveTeacher(decoder(1, 2))
OBJECTIVES = {
    "next_token": NextToken(),
    "z_loss": NextToken(z_loss=0.01),
    "distill": Distillation(TEACHER, alpha=0.5664, beta=0.1081, temperature=0.7),
    "distill_on_answers": Distillation(TEACHER, alpha=0.3, beta=0.7, temperature=2.0, divergence="jsd", on="answers"),
}


def example(row: int, length: int, prompt: int) -> Example:
    ids = np.random.default_rng(row).integers(0, V, length, dtype=np.int32)
    return Example(row, str(row), ids, np.arange(length) >= prompt)


def gradient(
    objective: NextToken | Distillation, batches: Sequence[Batch], tell: bool = False
) -> tuple[float, list[Tensor]]:
    """The loop's arithmetic: counts over the micro-batches first, then each one's share, gradients added up."""
    counts = add_counts(objective.counts(b) for b in batches)
    STUDENT.zero_grad()
    loss = 0.0
    for batch in batches:
        given_counts = {"counts": counts} if tell else {}
        share = total(objective(STUDENT, batch, **given_counts), counts)
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.item()
    return loss, [p.grad.clone() for p in STUDENT.parameters() if p.grad is not None]


def same(got: tuple[float, list[Tensor]], want: tuple[float, list[Tensor]]) -> None:
    assert got[0] == pytest.approx(want[0], rel=1e-11)
    assert len(got[1]) == len(want[1]) > 0
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


rows = st.lists(st.tuples(st.integers(2, 20), st.integers(0, 19)), min_size=2, max_size=6)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(rows, st.integers(1, 4))
def test_micro_batches_equal_the_full_batch(name: str, shapes: list[tuple[int, int]], size: int) -> None:
    examples = [example(i, length, min(prompt, length - 1)) for i, (length, prompt) in enumerate(shapes)]
    whole = gradient(OBJECTIVES[name], [collate([[e] for e in examples])])
    parts = [collate([[e] for e in examples[i : i + size]]) for i in range(0, len(examples), size)]
    same(gradient(OBJECTIVES[name], parts), whole)


@pytest.mark.parametrize("name", ["distill", "distill_on_answers"])
def test_telling_the_global_counts_changes_no_number(name: str) -> None:
    examples = [example(0, 20, 18), example(1, 5, 1), example(2, 9, 0)]
    batches = [collate([[e]]) for e in examples]
    same(gradient(OBJECTIVES[name], batches, tell=True), gradient(OBJECTIVES[name], batches))


def test_the_terms_have_different_denominators() -> None:
    batch = collate([[example(0, 20, 18)], [example(1, 10, 4)]])
    assert OBJECTIVES["distill"].counts(batch) == {"nll": 2 + 6, "kl": 19 + 9}
    assert OBJECTIVES["distill_on_answers"].counts(batch) == {"nll": 8, "kl": 8}


def test_a_mean_of_means_would_be_seen() -> None:
    """The mistake itself differs from the truth by far more than the tolerance above."""
    objective = OBJECTIVES["distill"]
    batches = [collate([[example(0, 20, 18)]]), collate([[example(1, 20, 1)]])]
    right, _ = gradient(objective, batches)
    wrong = sum(total(objective(STUDENT, b), objective.counts(b)).item() for b in batches) / 2
    assert abs(wrong - right) > 1e-3
