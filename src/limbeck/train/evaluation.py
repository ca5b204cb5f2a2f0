"""Evaluations between steps: on the weights in use, in eval mode, without a trace in the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from limbeck.errors import ConfigError, nearest
from limbeck.kernels.allocator import give_back_freed_memory
from limbeck.train.settings import TrainSettings
from limbeck.train.stream import derive

__all__ = ["Evaluation", "evaluate"]


class Evaluation(Protocol):
    """Anything that measures a model: a held-out loss, a metric of a task, a probe."""

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return named values, such as ``{"valid/nll": 2.1}``; the model is in eval mode and must not be changed."""


def evaluate(
    model: nn.Module, evaluations: Sequence[Evaluation], step: int, settings: TrainSettings, seed: int
) -> dict[str, float]:
    """Run every evaluation after ``step`` steps, seeded by the step, and merge what they return.

    Before and after, freed memory is given back: the blocks of a training step do not fit those of an evaluation.

    Raises:
        ConfigError: the monitored metric is not among the results, or two evaluations return the same name.
    """
    give_back_freed_memory()
    model.eval()
    torch.manual_seed(derive(seed, "evaluate", step))
    values: dict[str, float] = {}
    with torch.no_grad():
        for one in evaluations:
            for name, value in one(model, step).items():
                if name in values:
                    raise ConfigError(f"two evaluations return '{name}': give one of them another name")
                values[name] = float(value)
    model.train()
    give_back_freed_memory()
    if settings.monitor and settings.monitor not in values:
        known = ", ".join(sorted(values)) or "nothing"
        hint = nearest(settings.monitor, values)
        raise ConfigError(f"monitor '{settings.monitor}' is not measured (there is {known}){hint}")
    return values
