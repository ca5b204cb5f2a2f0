"""Held-out loss: an objective's terms over fixed batches, as an evaluation of the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from limbeck.data.batch import Batch
from limbeck.losses.terms import add_counts
from limbeck.objectives.objective import AnyObjective

__all__ = ["HeldOut"]


class HeldOut:
    """Mean of each loss term over ``batches``: every term's sum divided once by its own count over them all.

    Args:
        objective: usually the task's own, without a teacher, so that runs with and without one can be compared.
        batches: evaluated in order.
        prefix: of the metric names, such as ``valid``: ``valid/nll``.
        bytes_per_token: of the held-out text; where told, ``prefix/bits_per_byte`` is measured too.
    """

    def __init__(
        self, objective: AnyObjective, batches: Sequence[Batch], prefix: str = "valid", bytes_per_token: float = 0.0
    ) -> None:
        self.objective, self.batches, self.prefix = objective, batches, prefix
        self.bytes_per_token = bytes_per_token
        self.counts = add_counts(objective.counts(b) for b in batches)

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return ``{prefix/term: mean}`` in the term's unit (nats a token)."""
        del step  # the same batches at every step
        sums = dict.fromkeys(self.counts, 0.0)
        device = next(model.parameters()).device
        for batch in self.batches:
            for name, term in self.objective(model, batch.to(device)).items():
                sums[name] += float(term.sum)
        means = {f"{self.prefix}/{name}": sums[name] / count for name, count in self.counts.items() if count > 0}
        if self.bytes_per_token and f"{self.prefix}/nll" in means:
            bits = means[f"{self.prefix}/nll"] / math.log(2) / self.bytes_per_token
            means[f"{self.prefix}/bits_per_byte"] = bits
        return means
