"""I1 in the loop: K micro-batches of unequal length give the gradient of one full batch, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.losses.terms import total
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings
from tests.reference.training import PlainNextToken, Random, tiny


@dataclass(frozen=True)
class Joined:
    """Each micro-batch is ``k`` of another stream's, laid out as one."""

    inner: Any
    k: int
    per_epoch: int = 0

    def at(self, index: int) -> Batch:
        parts = [self.inner.at(index * self.k + j) for j in range(self.k)]
        width = max(p.ids.shape[1] for p in parts)

        def lay(name: str, fill: int) -> Tensor:
            rows = [getattr(p, name) for p in parts]
            return torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1]), value=fill) for r in rows])

        return Batch(
            lay("ids", 0), lay("target_mask", False), lay("document_ids", 0), lay("row_ids", -1), lay("offsets", 0),
            plain=True,
        )  # fmt: skip


def gradients(stream: Any, accumulation: int, precision: str = "fp64") -> list[dict[str, Tensor]]:
    """What the optimizer saw in each of two steps."""
    model, seen = tiny(), []

    def keep(step: int, losses: Mapping[str, float]) -> None:
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None} | {"losses": losses})

    settings = TrainSettings(
        steps=2, accumulation=accumulation, precision=precision, clip_norm=0, keep_gradients=True, eps=1e-3
    )
    train(model, PlainNextToken(pull=0.3), stream, settings, on_step=keep, progress=False)
    return seen


@pytest.mark.parametrize("k", [2, 3, 4])
def test_micro_batches_give_the_gradient_of_the_full_batch(k: int) -> None:
    apart, joined = gradients(Random(), k), gradients(Joined(Random(), k), 1)
    for one, other in zip(apart, joined, strict=True):
        losses, others = one.pop("losses"), other.pop("losses")
        assert losses == pytest.approx(others, rel=1e-12)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_the_written_out_mean() -> None:
    """Against autograd on the formula: sum of NLL / all targets + 0.3 * sum of squares / all tokens."""
    model, objective = tiny().double(), PlainNextToken(pull=0.3)
    batches = [Random().at(i) for i in range(3)]
    targets = sum(objective.counts(b)["nll"] for b in batches)
    real = sum(objective.counts(b)["pull"] for b in batches)
    loss = sum(objective(model, b)["nll"].sum / targets + 0.3 * objective(model, b)["pull"].sum / real for b in batches)
    loss.backward()
    seen = gradients(Random(), 3)[0]
    assert seen["losses"]["train/loss"] == pytest.approx(loss.item(), rel=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(seen[name], p.grad, rtol=1e-10, atol=1e-12)


def test_the_mean_of_means_is_another_gradient() -> None:
    """The micro-batches are unequal enough that the usual mistake would be seen."""
    model, objective = tiny().double(), PlainNextToken(pull=0.3)
    for batch in (Random().at(i) for i in range(3)):
        (total(objective(model, batch), objective.counts(batch)) / 3).backward()
    right = gradients(Random(), 3)[0]["embed.weight"]
    assert (model.embed.weight.grad - right).norm() > 1e-3 * right.norm()
