"""The divergence on answer tokens equals trl's GKD loss, in value and in every gradient, on a tiny model."""

from __future__ import annotations

import warnings

import pytest
import torch

from limbeck.losses.divergence import named
from limbeck.losses.terms import total
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher
from limbeck.synth.on_policy import Mixing
from tests.reference.task_models import small
from tests.synth.test_on_policy import stream

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("name", "skew", "beta"),
    [("forward_kl", None, 0.0), ("reverse_kl", None, 1.0), ("jsd", 0.5, 0.5), ("jsd", 0.1, 0.1)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradients_are_those_of_trl(name: str, skew: float | None, beta: float, temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gkd = pytest.importorskip("trl.experimental.gkd", exc_type=ImportError)
    student, teacher = small().double(), small(layers=3).double()
    batch = stream(student, Mixing(share=1.0, max_new_tokens=8)).at(0)
    objective = Distillation(
        LiveTeacher(teacher), alpha=0.0, beta=1.0, temperature=temperature, divergence=named(name, skew), on="answers"
    )
    loss = total(objective(student, batch), objective.counts(batch))
    loss.backward()  # type: ignore[no-untyped-call]
    ours = {k: p.grad.clone() for k, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    with torch.no_grad():
        theirs = teacher(batch)
    reference = gkd.GKDTrainer.generalized_jsd_loss(
        student(batch), theirs, labels=batch.next_token_labels(), beta=beta, temperature=temperature
    )
    reference.backward()
    assert loss.item() == pytest.approx(temperature**2 * reference.item(), rel=1e-6)  # its mixture weights are fp32
    for k, p in student.named_parameters():
        assert p.grad is not None and torch.allclose(ours[k], temperature**2 * p.grad, rtol=1e-5, atol=1e-8), k
