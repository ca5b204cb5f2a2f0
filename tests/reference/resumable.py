"""A training that a test can kill and start again; as a program it runs until it is done or killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.config import Config
from limbeck.run import Run
from limbeck.train.loop import TrainResult, train
from limbeck.train.settings import TrainSettings
from tests.reference.training import HeldOut, PlainNextToken, Random, tiny, weights

STEPS = 12


class Recipe(Config):
    """Only what tells two runs apart."""

    precision: str = "fp32"


class Watched(Random):
    """A stream that writes down which micro-batches were fetched."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        object.__setattr__(self, "seen", seen)

    def at(self, index: int) -> Any:
        self.seen.append(index)  # type: ignore[attr-defined]
        return super().at(index)


def settings(precision: str = "fp32", **changes: Any) -> TrainSettings:
    """Everything that has a memory is on: schedule, accumulation, clipping, early stopping, windows of the log."""
    values: dict[str, Any] = {
        "steps": STEPS, "accumulation": 2, "learning_rate": 3e-3, "schedule": "cosine", "warmup": 0.2,
        "precision": precision, "evaluate_every": 4, "patience": 5, "checkpoint_every": 3, "log_every": 5,
    }  # fmt: skip
    return TrainSettings(**(values | changes))


def fit(
    folder: Path,
    precision: str = "fp32",
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    seen: list[int] | None = None,
    **changes: Any,
) -> tuple[dict[str, torch.Tensor], TrainResult, list[dict[str, Any]]]:
    """The command: the same every time. Returns final weights, result and metrics."""
    model = tiny(dropout=0.1)
    with Run.create(folder, Recipe(precision=precision)) as run:
        result = train(
            model, PlainNextToken(0.1), Watched([] if seen is None else seen), settings(precision, **changes),
            evaluations=[HeldOut()], run=run, seed=3, on_step=on_step, progress=False,
        )  # fmt: skip
        return weights(model), result, run.metrics()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(Path(sys.argv[1]), on_step=lambda step, _: time.sleep(0.2))
