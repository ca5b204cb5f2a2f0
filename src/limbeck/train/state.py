"""How far a training is: everything but the tensors, as a checkpoint's ``state.json`` holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from limbeck.train.settings import TrainSettings

__all__ = ["State", "Tally"]


@dataclass(slots=True)
class Tally:
    """Sums and counts since the last line of metrics, so that a logged loss is a true mean over its steps.

    Attributes:
        sums: nats by term, over micro-batches and ranks.
        counts: items by term.
        weights: the term's coefficient in the loss.
        peaks: largest loss and gradient norm of a single step, by the name they are logged under.
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float], counts: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Add one step."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + counts[name]
            self.weights[name] = weights[name]

    def peak(self, loss: float, grad_norm: float) -> None:
        """Hold one step's loss and gradient norm against the largest so far: means hide a spike."""
        for name, value in (("train/loss_max", loss), ("grad_norm_max", grad_norm)):
            self.peaks[name] = max(value, self.peaks.get(name, value))

    def means(self) -> dict[str, float]:
        """Return the mean of each term that counted anything as ``train/term``, and their weighted sum as
        ``train/loss``.
        """
        terms = {n: s / self.counts[n] for n, s in self.sums.items() if self.counts[n] > 0}
        return {"train/loss": sum(self.weights[n] * v for n, v in terms.items())} | {
            f"train/{name}": value for name, value in terms.items()
        }


@dataclass(slots=True)
class State:
    """Place in a training; with the weights and the optimizer's moments, all that a resume needs.

    Data order and dropout are pure functions of the seed and the micro-batch's index, so no generator is kept.

    Attributes:
        step: optimizer steps done.
        precision: dtype that was chosen at the start.
        evaluated: step of the last evaluation, -1 before the first.
        best_step: step of the best evaluation.
        best_value: the monitored metric there.
        worse: evaluations since then.
        real_tokens: tokens seen, padding left out, over all ranks.
        target_tokens: tokens learned from, over all ranks.
        seconds: wall-clock of all sessions, evaluations and checkpoints included.
        step_seconds: of the optimizer steps alone.
        tally: losses since the last line of metrics.
        metrics_bytes: size of ``metrics.jsonl`` at the checkpoint.
        settings: of the training, to refuse going on with others.
    """

    step: int = 0
    precision: str = "fp32"
    evaluated: int = -1
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0
    real_tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    metrics_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def judge(self, value: float, settings: TrainSettings) -> bool:
        """Take the monitored ``value`` at this step into account; true where it is the best so far (NaN never is)."""
        best = math.inf if self.best_value is None else self.best_value
        better = value < best if settings.mode == "min" else (self.best_value is None or value > best)
        if better and math.isfinite(value):
            self.best_step, self.best_value, self.worse = self.step, value, 0
            return True
        self.worse += 1
        return False

    def to_json(self) -> dict[str, Any]:
        """Return plain values; floats come back bit for bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> State:
        """Read ``to_json``'s values.

        Raises:
            ValueError: it is not such a state.
        """
        return TypeAdapter(cls).validate_json(text)
