"""Probe of lost generality on a task that was never trained on: accuracy and spread of answers beside the base's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from scipy.stats import binomtest

from limbeck.errors import DataError
from limbeck.measure.alarm import Alarm, Subject
from limbeck.measure.classes import ClassCounts, class_counts, collapse
from limbeck.measure.scores import Scores, align
from limbeck.model.decoder import Decoder

__all__ = ["ZeroShot"]


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """What a model answers on rows of a task that the run does not train, against what its base answered.

    It fires where accuracy fell by more than ``threshold`` and an exact test of the items that changed agrees (McNemar
    1947), or where the answers collapsed to one and the base's had not: a kept accuracy alone proves nothing, since one
    answer to everything keeps the majority's rate.

    Attributes:
        ask: measures a model on the rows; scores of classes, item by item.
        base: scores of the model before the run.
        task: how sentences call the task.
        threshold: largest fall of accuracy that is expected.
        alpha: error rate of the test.
    """

    ask: Callable[[Decoder], Scores]
    base: Scores
    task: str
    threshold: float = 0.05
    alpha: float = 0.05
    name: ClassVar[str] = "zero-shot"

    @classmethod
    def of(cls, ask: Callable[[Decoder], Scores], base: Decoder, task: str) -> ZeroShot | None:
        """Ask ``base``; None where it cannot answer at all, as with a context too short for the prompts."""
        try:
            return cls(ask, ask(base), task)
        except DataError:
            return None

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent for a model whose head tells classes."""
        if subject.model is None or subject.model.config.classes is not None:
            return None
        now, before = align(self.ask(subject.model), self.base)
        ours, theirs = class_counts(now), class_counts(before)
        fall = theirs.accuracy - ours.accuracy
        lost = int(((before["correct"] == 1) & (now["correct"] == 0)).sum())
        won = int(((before["correct"] == 0) & (now["correct"] == 1)).sum())
        sure = lost + won > 0 and binomtest(lost, lost + won, 0.5, alternative="greater").pvalue <= self.alpha
        collapsed = _one_answer(ours) and not _one_answer(theirs)
        return Alarm(
            self.name,
            fall,
            self.threshold,
            (fall > self.threshold and bool(sure)) or collapsed,
            f"on {ours.items} rows of {self.task}, never trained on, accuracy is {ours.accuracy:.3f}, "
            f"{theirs.accuracy:.3f} for the base and {ours.majority[1]:.3f} for one answer to all; {_said(ours)}, the "
            f"base's {_said(theirs)}; a fall up to {self.threshold:g} is expected, and no collapse to one answer",
        )


def _one_answer(counts: ClassCounts) -> bool:
    return collapse(counts.true, counts.answers) is not None


def _said(counts: ClassCounts) -> str:
    answers = ", ".join(f"{label} {count}" for label, count in counts.answers.items())
    return f"answers are {answers} (entropy {counts.entropies[0]:.2f} nats)"
