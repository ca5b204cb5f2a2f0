"""One optimizer step: micro-batches, global counts, gradients, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DivergedError, NothingToLearnError
from limbeck.losses.terms import add_counts, total
from limbeck.objectives.objective import Objective
from limbeck.train.distributed import World, full, sync
from limbeck.train.optim import sweep
from limbeck.train.precision import TrainedWeights
from limbeck.train.prefetch import Prefetched, Prefetcher
from limbeck.train.settings import TrainSettings
from limbeck.train.stream import Stream, derive, name_rows, tokens

__all__ = ["Outcome", "Stepper"]

_NORM_BLOCK = 1 << 20  # elements that are widened at a time


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one optimizer step saw, over all micro-batches and ranks.

    Attributes:
        sums: nats by term.
        counts: items by term.
        weights: coefficient by term.
        grad_norm: global norm of the gradient before clipping.
        real_tokens: tokens that are not padding.
        target_tokens: tokens learned from.
    """

    sums: dict[str, float]
    counts: dict[str, float]
    weights: dict[str, float]
    grad_norm: float
    real_tokens: int
    target_tokens: int


class Stepper:
    """Runs optimizer steps; holds no state beyond its parts, so a step is a function of its number and the weights.

    Attributes:
        model: what the objective is called with: the plain model, or its wrapper for several ranks.
        averages: the wrapper averages gradients over the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: TrainedWeights,
        optimizer: torch.optim.AdamW,
        objective: Objective[Any],
        stream: Stream[Any],
        settings: TrainSettings,
        *,
        world: World,
        device: torch.device,
        seed: int,
        averages: bool,
        leavable: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.weights, self.optimizer = model, weights, optimizer
        self.objective, self.stream, self.settings = objective, stream, settings
        self.world, self.device, self.seed, self.averages = world, device, seed, averages
        self.leavable = leavable
        self.feed = Prefetcher(stream, device)

    def indices(self, step: int, rank: int | None = None) -> list[int]:
        """Return micro-batches of ``step`` on this rank (or on ``rank``): the ranks take turns in the stream."""
        k, rank = self.settings.accumulation, self.world.rank if rank is None else rank
        return [(step * k + j) * self.world.size + rank for j in range(k)]

    def __call__(self, step: int, rate: float) -> Outcome:
        """Take step number ``step`` with learning rate ``rate``.

        Raises:
            DivergedError: a loss or the gradient is not finite; the weights are those before the step.
            NothingToLearnError: no micro-batch of the step holds a target.
        """
        fed = self.feed.take(self.indices(step), self.indices(step + 1))
        counts, real, target = self._count(step, [f.batch for f in fed])
        self.weights.clear_gradients(self.settings.keep_gradients)
        with self.leavable():
            values, weights = self._gradients(step, fed, counts)
        if not self.averages:
            self.world.add_gradients(list(self.weights.trained.values()))
        norm = self._norm()
        per_batch = self.world.gather(values)  # (ranks, K, terms)
        sums = per_batch.sum(dim=(0, 1)).tolist()
        grad_norm = float(norm)
        if not (all(map(math.isfinite, sums)) and math.isfinite(grad_norm)):
            self._diverged(step, per_batch, grad_norm)
        self._update(rate, norm)
        names = sorted(weights)
        return Outcome(dict(zip(names, sums, strict=True)), counts, weights, grad_norm, real, target)

    def _count(self, step: int, batches: Sequence[Any]) -> tuple[dict[str, float], int, int]:
        counts = add_counts(self.objective.counts(b) for b in batches)
        seen = [tokens(b) for b in batches]
        names = sorted(counts)
        row = [counts[n] for n in names] + [float(sum(s[0] for s in seen)), float(sum(s[1] for s in seen))]
        *summed, real, target = self.world.add(row)
        counts = dict(zip(names, summed, strict=True))
        if not any(counts.values()):
            rows = name_rows(self._all_batches(step))
            raise NothingToLearnError(
                f"step {step + 1} has nothing to learn: {rows} have no target left after masking and truncation; "
                "drop them, or raise the context"
            )
        return counts, int(real), int(target)

    def _gradients(
        self, step: int, fed: Sequence[Prefetched], counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """Backward of every micro-batch; returns each one's sums (K, terms) float64 and the terms' weights."""
        values: list[Tensor] = []
        weights: dict[str, float] = {}
        # A wrapper that averages is made to sum: each rank's loss is already its share of the global mean.
        scale = self.world.size if self.averages else 1
        for j, (index, batch) in enumerate(zip(self.indices(step), fed, strict=True)):
            torch.manual_seed(derive(self.seed, "dropout", index))
            with sync(self.model, last=j == len(fed) - 1):
                terms = self.objective(self.model, batch.to(self.device), counts)
                (total(terms, counts) * scale).backward()  # type: ignore[no-untyped-call]
            weights = {name: terms[name].weight for name in sorted(terms)}
            values.append(torch.stack([terms[name].sum.detach().double() for name in sorted(terms)]))
        return torch.stack(values), weights

    def _norm(self) -> Tensor:
        gradients = list(self.weights.gradients().values())
        if any(g.dtype == torch.bfloat16 for g in gradients):  # its own norm would be rounded to its dtype
            if self.device.type == "cpu":  # a block at a time: a whole tensor would be cast to fp32 first
                gradients = [part for g in gradients for part in torch.split(g.reshape(-1), _NORM_BLOCK)]
            norms = torch.stack(list(torch._foreach_norm(gradients, 2, dtype=torch.float32)))
            return norms.square().sum().sqrt()
        return full(nn.utils.get_total_norm(gradients))

    def _update(self, rate: float, norm: Tensor) -> None:
        clip = self.settings.clip_norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        copies = self.weights.copies()
        if copies and self.device.type == "cpu":
            divisor = ((norm.float() + 1e-6) / clip).clamp(min=1) if clip else torch.ones(())
            sweep(self.optimizer, self.weights.trained, self.weights.gradients(), copies, divisor)
            return
        if clip:
            nn.utils.clip_grads_with_norm_(self.weights.trained.values(), clip, norm)
        self.optimizer.step()
        self.weights.publish()

    def _all_batches(self, step: int) -> list[Any]:
        """Micro-batches of every rank: the stream is a pure function, so each rank can name all rows."""
        return [self.stream.at(i) for rank in range(self.world.size) for i in self.indices(step, rank)]

    def _diverged(self, step: int, per_batch: Tensor, grad_norm: float) -> None:
        self.weights.clear_gradients(keep=False)
        bad = [
            (self.indices(step, rank)[j], sums)
            for rank, row in enumerate(per_batch.tolist())
            for j, sums in enumerate(row)
            if not all(map(math.isfinite, sums))
        ]
        advice = "the weights are those before it; lower the learning rate, or look at those rows"
        if bad:
            index, sums = min(bad)
            value = next(v for v in sums if not math.isfinite(v))
            where = f"micro-batch {index} ({name_rows([self.stream.at(index)])})"
            raise DivergedError(f"the loss of step {step + 1} is {value} at {where}: {advice}")
        indices = sorted(i for rank in range(self.world.size) for i in self.indices(step, rank))
        where = f"micro-batches {indices[0]} to {indices[-1]}" if len(indices) > 1 else f"micro-batch {indices[0]}"
        rows = name_rows(self._all_batches(step))
        raise DivergedError(f"the gradient norm of step {step + 1} is {grad_norm} over {where} ({rows}): {advice}")
