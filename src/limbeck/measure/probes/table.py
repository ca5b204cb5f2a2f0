"""Probes: what is measured beside the task on every run, each with a threshold and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.measure.alarm import Alarm, Probe, Subject
from limbeck.measure.classes import ClassCounts, class_counts, collapse
from limbeck.measure.probes.model import calibration_error
from limbeck.measure.scores import Scores
from limbeck.model.decoder import Decoder

__all__ = ["Accuracy", "ClassCalibration", "OneClass", "ProbeEvaluation", "run_probes", "score_alarms"]


def run_probes(probes: Sequence[Probe], subject: Subject) -> list[Alarm]:
    """Ask every probe; those without anything to judge are left out."""
    found = [probe(subject) for probe in probes]
    return [alarm for alarm in found if alarm is not None]


class ProbeEvaluation:
    """Probes as an evaluation of the training loop (``train.evaluation.Evaluation``): ``probe/NAME``.

    Args:
        probes: what to measure.
        subject: what they look at, made from the model at each evaluation: it may write texts for them.
    """

    def __init__(self, probes: Sequence[Probe], subject: Callable[[Decoder], Subject]) -> None:
        self.probes, self.subject = tuple(probes), subject

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Values by name; what a probe cannot judge is not there."""
        del step  # the same texts and prompts at every step
        assert isinstance(model, Decoder), "probes look at decoders"
        return {f"probe/{alarm.name}": alarm.value for alarm in run_probes(self.probes, self.subject(model))}


def _counts(subject: Subject) -> ClassCounts | None:
    """Histograms of a classifier's scores; None of any other."""
    if subject.scores is None or not any(c.startswith("true:") for c in subject.scores.columns):
        return None
    return class_counts(subject.scores)


@dataclass(frozen=True, slots=True)
class OneClass:
    """Share of the commonest predicted class; fires where the predictions collapsed to it (I27)."""

    threshold: float = 0.95
    name: str = "collapse"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See ``measure.classes.collapse``; silent for what is no classifier."""
        counts = _counts(subject)
        if counts is None:
            return None
        predicted = counts.answers
        spread, true = counts.entropies
        answer = max(predicted, key=lambda label: predicted[label])
        share = predicted[answer] / counts.items
        fired = collapse(counts.true, predicted, share=self.threshold) is not None
        return Alarm(
            self.name,
            share,
            self.threshold,
            fired,
            f"{predicted[answer]} of {counts.items} predictions are '{answer}', which is true of "
            f"{counts.true.get(answer, 0)}, with an entropy of {spread:.2f} nats where the truth has {true:.2f}; fewer "
            f"than {self.threshold:.0%} alike are expected",
        )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy less the rate of the commonest class; fires where it is not above (I27)."""

    threshold: float = 0.0
    name: str = "majority"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent where every item is of one class, of which the table of classes tells."""
        counts = _counts(subject)
        if counts is None or counts.majority[1] == 1:
            return None
        name, rate = counts.majority
        gain = counts.accuracy - rate
        return Alarm(
            self.name,
            gain,
            self.threshold,
            gain <= self.threshold,
            f"accuracy {counts.accuracy:.3f} against {rate:.3f} for always answering '{name}'; more is expected",
        )


@dataclass(frozen=True, slots=True)
class ClassCalibration:
    """Is a classifier right as often as it says, over the items of an evaluation."""

    threshold: float = 0.15
    least: int = 100
    name: str = "class-calibration"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent below ``least`` items, and where the probability of the answer was not kept."""
        scores = subject.scores
        if scores is None or not {"confidence", "correct"} <= set(scores.columns) or len(scores) < self.least:
            return None
        error, over = calibration_error(scores["confidence"], scores["correct"])
        return Alarm(
            self.name,
            error,
            self.threshold,
            error > self.threshold,
            f"over {len(scores)} items confidence and accuracy differ by {error:.3f} (it is "
            f"{'over' if over > 0 else 'under'}confident by {abs(over):.3f}); up to {self.threshold:g} is expected",
        )


def score_alarms(scores: Scores) -> list[Alarm]:
    """Return alarms that the scores of an evaluation tell by themselves."""
    return run_probes((OneClass(), Accuracy(), ClassCalibration()), Subject(scores=scores))
