"""I2: KL is summed over the vocabulary, averaged over unmasked tokens, times T**2, and equal to scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from limbeck.data.batch import Batch
from limbeck.losses.terms import total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher
from tests.reference import losses as slow


def decoder(seed: int) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(vocab_size=60, context=16, layers=1, hidden_size=16, heads=2)).double()
    with torch.no_grad():
        model.embed.weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_mean_over_tokens_of_scipy_s_entropy_times_t_squared(temperature: float) -> None:
    student, teacher = decoder(1), decoder(2)
    batch = Batch.of_ids(torch.randint(60, (3, 10)), lengths=[10, 4, 7])
    objective = Distillation(LiveTeacher(teacher), alpha=0.0, beta=1.0, temperature=temperature)
    got = total(objective(student, batch), objective.counts(batch))
    mask = batch.prediction_mask()
    assert int(mask.sum()) == 9 + 3 + 6
    with torch.no_grad():
        q, p = (slow.softmax(m(batch)[mask].numpy(), temperature) for m in (student, teacher))
    want = temperature**2 * np.mean(entropy(p, q, axis=1))
    assert want > 0.1  # the two do differ
    assert got.item() == pytest.approx(want, rel=1e-10)


def test_zero_for_the_teacher_itself() -> None:
    model = decoder(1)
    batch = Batch.of_ids(torch.randint(60, (3, 10)))
    objective = Distillation(LiveTeacher(decoder(1)), alpha=0.0, beta=1.0, temperature=0.7)
    loss = total(objective(model, batch), objective.counts(batch))
    grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert abs(loss.item()) < 1e-14
    assert all(g.abs().max() < 1e-14 for g in grads)


def test_gradients_keep_their_size_across_temperatures() -> None:
    """The reason for T**2: logits of size 1/T have gradients of size 1/T**2 (Hinton et al. 2015)."""
    batch = Batch.of_ids(torch.randint(60, (3, 10)))
    norms = []
    for temperature in (20.0, 40.0):
        student = decoder(1)
        objective = Distillation(LiveTeacher(decoder(2)), alpha=0.0, beta=1.0, temperature=temperature)
        total(objective(student, batch), objective.counts(batch)).backward()  # type: ignore[no-untyped-call]
        grad = student.embed.weight.grad
        assert grad is not None
        norms.append(float(grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.25)
