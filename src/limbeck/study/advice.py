"""Alarms for a reader: how severe each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ADVICE", "Advice", "AlarmGroup", "by_kind"]

Severity = Literal["broken", "doubtful", "look"]
_ORDER: tuple[Severity, ...] = ("broken", "doubtful", "look")


@dataclass(frozen=True, slots=True)
class Advice:
    """What an alarm means for the figures, and what to do."""

    severity: Severity
    what_to_do: str


@dataclass(frozen=True, slots=True)
class AlarmGroup:
    """One kind of alarm with everything that raised it.

    Attributes:
        name: of the alarm.
        advice: severity and what to do.
        fired: (arm, sentence), once for equal sentences.
        runs: how many runs raised it.
    """

    name: str
    advice: Advice
    fired: tuple[tuple[str, str], ...]
    runs: int


ADVICE: dict[str, Advice] = {
    "collapse": Advice(
        "broken", "the model gives one answer: do not use its accuracy; lower the rate or check the labels"
    ),
    "majority": Advice("broken", "no better than always giving the commonest answer: do not report it as a result"),
    "one-answer": Advice("broken", "the zero-shot answers are constant: their accuracy says nothing"),
    "leakage": Advice("broken", "evaluation rows stand in the training rows: drop them (--overlap drop) and run again"),
    "memorisation": Advice("broken", "it copies its training text: train for fewer steps, or on more rows"),
    "copied-run": Advice("broken", "it copies its training text: train for fewer steps, or on more rows"),
    "end-token": Advice("broken", "it does not stop: check that the end token is learned and is in the stop set"),
    "kept-start": Advice("broken", "training never improved on its start: lower the rate, or look at the data"),
    "generality": Advice("doubtful", "it left its base far behind on other text: mix in general text, or train less"),
    "general-text": Advice("doubtful", "it got worse on general text: mix some in, or train less"),
    "zero-shot": Advice("doubtful", "it lost a task that it was not trained on: mix in other data, or train less"),
    "calibration": Advice(
        "doubtful", "its confidence is not earned: train less, or fit a temperature on held-out rows"
    ),
    "class-calibration": Advice("doubtful", "its confidence is not earned: train less, or fit a temperature"),
    "loops": Advice("doubtful", "it repeats itself: sample, or train longer"),
    "repetition": Advice("doubtful", "it repeats itself: sample, or train longer"),
    "echo": Advice("doubtful", "it repeats the prompt: check the template and the answer mask"),
    "length": Advice(
        "doubtful", "its texts are far longer or shorter than the references: check the stop set and the limit"
    ),
    "cut-rows": Advice("doubtful", "many rows were cut to the context: raise it, or shorten the prompt"),
    "loss-spike": Advice("look", "the loss jumped: lower the rate or clip the gradient"),
    "gradient-spike": Advice(
        "look", "a gradient was far larger than the others: clip it, or look at the rows of that step"
    ),
}
"""Advice by the name of an alarm."""

_OTHER = Advice("look", "read its sentence")


def by_kind(arms: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> tuple[list[AlarmGroup], int]:
    """Group the alarms that fired by kind, the most severe first.

    Args:
        arms: label and the alarms of all its runs.

    Returns:
        The groups, and how many checks passed.
    """
    fired: dict[str, list[tuple[str, str]]] = {}
    passed = 0
    for label, alarms in arms:
        for alarm in alarms:
            if alarm["fired"]:
                fired.setdefault(alarm["name"], []).append((label, alarm["sentence"]))
            else:
                passed += 1
    groups = [
        AlarmGroup(name, ADVICE.get(name, _OTHER), tuple(dict.fromkeys(some)), len(some))
        for name, some in fired.items()
    ]
    return sorted(groups, key=lambda g: _ORDER.index(g.advice.severity)), passed
