"""One optimizer step: what it says when there is nothing to learn, or when it diverges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.batch import Batch
from limbeck.errors import DivergedError, NothingToLearnError
from limbeck.kernels.fused_head import fused
from limbeck.losses.terms import Counts, Term, Terms
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher
from limbeck.train.distributed import World
from limbeck.train.optim import adamw, decayed
from limbeck.train.precision import TrainedWeights
from limbeck.train.settings import TrainSettings
from limbeck.train.step import Stepper
from tests.reference.training import PlainNextToken, Random, same, tiny, weights


def stepper(
    model: nn.Module, objective: Any = None, stream: Any = None, alone: bool = False, **changes: Any
) -> Stepper:
    settings = TrainSettings(**({"steps": 5, "accumulation": 2, "precision": "fp32"} | changes))
    held = TrainedWeights(model, settings.precision, alone)
    optimizer = adamw(held.trained, decayed(model), settings)
    return Stepper(
        model, held, optimizer, objective or PlainNextToken(0.1), stream or Random(), settings,
        world=World(), device=torch.device("cpu"), seed=0, averages=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Masked(Random):
    """Some micro-batches have no target."""

    empty: tuple[int, ...] = (0, 1, 2, 3)

    def at(self, index: int) -> Batch:
        batch = super().at(index)
        return replace(batch, target_mask=torch.zeros_like(batch.target_mask)) if index in self.empty else batch


@dataclass(frozen=True)
class OnlyNLL(PlainNextToken):
    def counts(self, batch: Batch) -> dict[str, float]:
        return {"nll": PlainNextToken().counts(batch)["nll"]}

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> dict[str, Term]:
        return {"nll": PlainNextToken()(model, batch)["nll"]}


def test_a_step_without_targets_names_its_rows() -> None:
    step = stepper(tiny(), OnlyNLL(), Masked())
    with pytest.raises(NothingToLearnError, match=r"step 2 has nothing to learn: rows 4, 5, 6 and 7 have no target"):
        step(1, 0.1)


def test_a_micro_batch_without_targets_is_no_error_and_no_nan() -> None:
    model, other = tiny(), tiny()
    stepper(model, OnlyNLL(), Masked(empty=(1,)))(0, 0.1)
    stepper(other, OnlyNLL(), accumulation=1)(0, 0.1)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@dataclass(frozen=True)
class Spoiled(PlainNextToken):
    """A loss, or only its gradient, that is not finite for batches that hold one row."""

    row: int = 6
    loss: float = math.nan
    gradient: float = 1.0

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> dict[str, Term]:
        terms = PlainNextToken.__call__(self, model, batch)
        if bool((batch.row_ids == self.row).any()):
            bad = terms["nll"].sum
            if self.gradient != 1.0:
                bad.register_hook(lambda g: g * self.gradient)
            else:
                bad = bad * self.loss
            terms["nll"] = Term(bad, terms["nll"].count)
        return terms


@pytest.mark.parametrize(("loss", "shown"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_names_step_batch_and_rows(loss: float, shown: str) -> None:
    model = tiny()
    step, start = stepper(model, Spoiled(loss=loss)), weights(model)
    with pytest.raises(DivergedError, match=rf"the loss of step 2 is {shown} at micro-batch 3 \(rows 6 and 7\)"):
        step(1, 0.1)
    assert same(weights(model), start)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("accumulation", "at", "where"),
    [(2, 1, r"step 2 is nan over micro-batches 2 to 3 \(rows 4, 5, 6 and 7\)"),
     (1, 3, r"step 4 is nan over micro-batch 3 \(rows 6 and 7\)")],
)  # fmt: skip
def test_a_gradient_that_is_not_finite_names_the_whole_step(accumulation: int, at: int, where: str) -> None:
    model = tiny()
    step, start = stepper(model, Spoiled(gradient=math.nan), accumulation=accumulation), weights(model)
    with pytest.raises(DivergedError, match=where):
        step(at, 0.1)
    assert same(weights(model), start)


def test_clipping_scales_the_global_norm() -> None:
    model = tiny().double()
    step = stepper(model, precision="fp64", clip_norm=0.01)
    outcome = step(0, 0.0)
    clipped = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert outcome.grad_norm > 0.1
    assert clipped.item() == pytest.approx(0.01, rel=1e-4)
    free = stepper(tiny().double(), precision="fp64", clip_norm=0)
    assert free(0, 0.0).grad_norm == outcome.grad_norm
    unclipped = torch.stack([p.grad.norm() for p in free.weights.trained.values()]).norm()
    assert unclipped.item() == pytest.approx(outcome.grad_norm, rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_bf16_steps_alone_are_those_with_gradients_gathered_in_fp32(clip: float) -> None:
    steps = [stepper(tiny(), alone=x, precision="bf16", accumulation=1, clip_norm=clip) for x in (True, False)]
    for number in range(3):
        alone, gathered = (step(number, 0.01) for step in steps)
        assert alone.grad_norm == pytest.approx(gathered.grad_norm, rel=1e-5)
    for name, master in steps[0].weights.trained.items():
        torch.testing.assert_close(master, steps[1].weights.trained[name], rtol=1e-6, atol=1e-7)


def test_micro_batches_are_dealt_in_turn() -> None:
    step = stepper(tiny(), accumulation=3)
    assert step.indices(2) == [6, 7, 8]
    step.world = World(rank=1, size=2)
    assert step.indices(2) == [13, 15, 17]
    assert sorted(step.indices(2) + step.indices(2, rank=0)) == list(range(12, 18))


def test_outcome_counts_tokens() -> None:
    outcome = stepper(tiny())(0, 0.1)
    batches = [Random().at(0), Random().at(1)]
    assert outcome.real_tokens == outcome.counts["pull"] == sum(int(b.real.sum()) for b in batches)
    assert outcome.target_tokens == outcome.counts["nll"]
    assert outcome.weights == {"nll": 1.0, "pull": 0.1}


def test_dropout_is_a_function_of_the_micro_batch() -> None:
    """Two micro-batches of one step drop the same as those two in steps of their own."""
    together = stepper(tiny(dropout=0.3), accumulation=2)(0, 0.0)
    apart = stepper(tiny(dropout=0.3), accumulation=1)
    sums = [apart(i, 0.0).sums["nll"] for i in (0, 1)]
    assert together.sums["nll"] == pytest.approx(sum(sums), rel=1e-6)
    assert stepper(tiny(), accumulation=1)(0, 0.0).sums["nll"] != pytest.approx(sums[0], rel=1e-3)


def test_no_two_micro_batches_draw_the_same() -> None:
    drawn: list[float] = []

    class Drawing(PlainNextToken):
        def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> dict[str, Term]:
            drawn.append(torch.rand(()).item())
            return PlainNextToken.__call__(self, model, batch)

    step = stepper(tiny(), Drawing())
    for number in range(4):
        step(number, 0.0)
    assert len(set(drawn)) == 8
    step.seed = 1
    step(0, 0.0)
    assert len(set(drawn)) == 10


def test_the_objective_is_told_the_counts_of_the_whole_step() -> None:
    told: list[Counts | None] = []

    @dataclass(frozen=True)
    class Told(PlainNextToken):
        def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> dict[str, Term]:
            told.append(counts)
            return PlainNextToken.__call__(self, model, batch)

    step = stepper(tiny(), Told(0.1), accumulation=3)
    outcome = step(0, 0.0)
    own = [PlainNextToken().counts(Random().at(i)) for i in range(3)]
    summed = {name: sum(c[name] for c in own) for name in own[0]}
    assert told == [summed] * 3 == [outcome.counts] * 3 and summed != own[0]


@pytest.mark.parametrize("told", [True, False])
def test_distillation_under_accumulation_makes_one_pass_over_the_head(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its terms have different denominators, whose ratio in a micro-batch is not that of the step."""
    passes: list[bool] = []
    real = fused.run
    monkeypatch.setattr(fused, "run", lambda *arguments: passes.append(True) or real(*arguments))
    objective: Any = Distillation(LiveTeacher(tiny()), alpha=0.6, beta=0.4, temperature=2.0)
    if not told:
        objective = Untold(objective)
    model = tiny()
    stepper(model, objective, Uneven(), accumulation=3)(0, 0.1)
    assert len(passes) == (3 if told else 6)


@dataclass(frozen=True)
class Untold:
    """An objective that is not told the counts of the step."""

    objective: Distillation

    def counts(self, batch: Batch) -> Counts:
        return self.objective.counts(batch)

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        return self.objective(model, batch)


@dataclass(frozen=True)
class Uneven(Random):
    """Every other micro-batch learns its last tokens alone."""

    def at(self, index: int) -> Batch:
        batch = super().at(index)
        late = torch.arange(batch.ids.shape[1]) >= (index % 2) * 4
        return replace(batch, target_mask=batch.target_mask & late)
