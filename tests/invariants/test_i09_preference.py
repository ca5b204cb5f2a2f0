"""I9: at step 0 DPO has the loss log 2 and a gradient on both sides; the reference is the frozen start."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.batch import PairBatch
from limbeck.data.pairs import collate_pairs
from limbeck.losses.preference import preference_loss
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import AdapterOff, Frozen, Reference, pair_log_probs
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import switched_off
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings
from tests.reference.pairs import RandomPairs, pairs, slow_log_prob
from tests.reference.training import tiny

BATCH = collate_pairs([[p] for p in pairs(6)])


def arms() -> dict[str, tuple[nn.Module, Reference]]:
    plain, adapted = tiny(), LoRA(rank=2).apply(tiny())
    return {"frozen": (plain, Frozen(plain)), "adapter_off": (adapted, AdapterOff(switched_off))}


@pytest.mark.parametrize("kind", ["frozen", "adapter_off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_loss_at_step_0_is_log_2(kind: str, dtype: torch.dtype) -> None:
    model, reference = arms()[kind]
    term = Preference(reference, beta=0.5)(model.to(dtype), BATCH)["preference"]
    assert term.sum.item() / term.count == pytest.approx(math.log(2), rel=1e-7)


def test_the_gradient_at_step_0_is_not_zero_on_either_side() -> None:
    """With respect to the hidden states of each side, so that no tie of weights can hide a dead one."""
    model = tiny()
    reference = Frozen(model)
    for side in (0, 1):
        policy = pair_log_probs(model, BATCH)
        alone = policy.detach().clone()
        alone[:, side] = policy[:, side]
        loss = preference_loss(alone, reference.log_probs(model, BATCH), beta=0.1).sum()
        norms = [g.norm().item() for g in torch.autograd.grad(loss, list(model.parameters()))]
        assert min(norms) > 1e-6


def test_a_step_raises_the_chosen_and_lowers_the_rejected_side() -> None:
    model = tiny()
    before = pair_log_probs(model, BATCH).detach()
    objective = Preference(Frozen(model), beta=0.1)
    objective(model, BATCH)["preference"].sum.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(1e-3 * p.grad)  # type: ignore[operator]
    change = (pair_log_probs(model, BATCH) - before).sum(dim=0)
    assert change[0] > 0 > change[1]


@pytest.mark.parametrize("kind", ["frozen", "adapter_off"])
def test_through_a_training_the_reference_stays_the_start(kind: str) -> None:
    model, reference = arms()[kind]
    start = copy.deepcopy(model)
    logged: list[Mapping[str, float]] = []
    settings = TrainSettings(steps=36, learning_rate=2e-2, precision="fp32", schedule="constant")
    train(
        model, Preference(reference, beta=0.5), RandomPairs(), settings, progress=False,
        on_step=lambda _, losses: logged.append(losses),
    )  # fmt: skip
    assert logged[0]["train/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert logged[-1]["train/loss"] < 0.67 and logged[-1]["train/margin"] > 0
    again = [line["train/reference_chosen"] for line in logged]
    assert again[0] == pytest.approx(again[6], rel=1e-6)  # the first micro-batch comes again after an epoch of six
    want = sum(slow_log_prob(start, p).item() for p in pairs(12)[:2]) / 2
    assert again[0] == pytest.approx(want, rel=1e-5)


def test_dropout_of_the_policy_does_not_reach_the_reference() -> None:
    model: Any = LoRA(rank=2, dropout=0.9).apply(tiny(dropout=0.5)).train()
    reference = AdapterOff(switched_off)
    assert torch.equal(reference.log_probs(model, BATCH), reference.log_probs(model, BATCH))


def test_log_probabilities_are_sums_over_the_completion_only() -> None:
    model = tiny().double()
    got = pair_log_probs(model, BATCH)
    want = [[slow_log_prob(model, side).item() for side in (p, p.rejected)] for p in pairs(6)]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12)
    assert isinstance(BATCH, PairBatch) and got.shape == (6, 2)
