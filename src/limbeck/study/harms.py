"""Harms of a smaller model, item by item: paired differences, positive where it is worse than its base."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from limbeck.config import Config
from limbeck.errors import DataError
from limbeck.measure.scores import Scores, align

__all__ = ["Grams", "Harm", "Margins", "harms", "is_refusal"]

Floats = NDArray[np.float64]

_WORDS = re.compile(r"\w+")
_GRAM = 8  # words of a run that counts as copied
_REFUSALS = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry|i can'?t|i cannot|i can not|i won'?t|i will not|i'?m (not able|unable)|i am (not"
    r" able|unable)|as an ai|unfortunately,? i)\b",
    re.IGNORECASE,
)
_ACCURACY = ("correct", "exact", "acc", "acc_norm", "exact_match", "strict", "flexible")
_QUALITY = ("bleu", "f1", "chrf", "rougeL")


class Margins(Config):
    """Largest harm that is accepted, of each kind."""

    accuracy: float = Field(0.01, gt=0, lt=1, description="share of answers: 0.003 is 0.3 points")
    nats: float = Field(0.02, gt=0, description="rise of the loss, in nats a token (an item where tokens are unknown)")
    zero_shot: float = Field(0.02, gt=0, lt=1, description="share of answers of the zero-shot task")
    calibration: float = Field(0.01, gt=0, lt=1, description="rise of the Brier score of the chosen answer")
    memorisation: float = Field(0.01, gt=0, lt=1, description="share of runs of 8 words copied from the training text")
    refusals: float = Field(0.01, gt=0, lt=1, description="share of answers that refuse")
    stop: float = Field(0.01, gt=0, lt=1, description="share of texts that no longer end with an end token")
    quality: float = Field(0.02, gt=0, lt=1, description="share of the base's own BLEU, F1 or chrF")
    speed: float = Field(0.05, gt=0, description="share of time a token that the smaller model may take more")


@dataclass(frozen=True, slots=True)
class Harm:
    """One kind of harm on shared items.

    Attributes:
        name: such as ``accuracy``.
        unit: of the differences.
        margin: largest mean difference that is accepted, in that unit.
        differences: (n,) positive where the smaller model is worse, in the order of looking.
        answers: differences of right and wrong: the planned share of changed answers applies.
    """

    name: str
    unit: str
    margin: float
    differences: Floats
    answers: bool

    @property
    def flips(self) -> tuple[int, int] | None:
        """Items that turned wrong and that turned right; None where there is no right and wrong."""
        if not self.answers:
            return None
        return int(np.sum(self.differences > 0)), int(np.sum(self.differences < 0))


@dataclass(frozen=True)
class Grams:
    """Every run of eight words of the training text."""

    runs: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Grams:
        """Gather them from ``texts``."""
        return cls(frozenset(run for text in texts for run in _runs(text)))

    def copied(self, text: str) -> float:
        """Return the share of runs of eight words in ``text`` that stand in the training text."""
        runs = _runs(text)
        return sum(run in self.runs for run in runs) / len(runs) if runs else 0.0


def is_refusal(text: str) -> bool:
    """Return whether ``text`` opens as a refusal in English ("I cannot ...", "As an AI ...")."""
    return _REFUSALS.match(text) is not None


def harms(
    base: Scores,
    smaller: Scores,
    margins: Margins,
    *,
    texts: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    learned: Grams | None = None,
    prefix: str = "",
) -> list[Harm]:
    """Build every harm that the columns of two evaluations of the same items tell.

    Args:
        base: scores of the base, in the order of looking.
        smaller: scores of the smaller model.
        margins: what is accepted.
        texts: item id -> what was generated, of both.
        learned: runs of the training text; None: memorisation is not judged.
        prefix: put before the names; ``zero-shot `` takes the margin of zero-shot answers.

    Raises:
        DataError: the items differ, or no column tells a harm.
    """
    a, b = align(base, smaller)
    out: list[Harm] = []
    right = next((c for c in _ACCURACY if c in a.columns and c in b.columns), None)
    if right is not None:
        margin = margins.zero_shot if prefix else margins.accuracy
        out.append(Harm(f"{prefix}accuracy", "share of answers", margin, a[right] - b[right], True))
    out += _nats(a, b, margins, prefix)
    if {"confidence", "correct"} <= set(a.columns) & set(b.columns):
        before, after = ((s["confidence"] - s["correct"]) ** 2 for s in (a, b))
        out.append(Harm(f"{prefix}calibration", "Brier score", margins.calibration, after - before, False))
    for column in ("ended", "ended_sampled"):
        if column in a.columns and column in b.columns:
            out.append(Harm(f"{prefix}stop tokens", "share of texts", margins.stop, a[column] - b[column], True))
            break
    for column in _QUALITY:
        if column in a.columns and column in b.columns and a[column].mean() > 0:
            lost_share = (a[column] - b[column]) / a[column].mean()
            out.append(Harm(prefix + column, "share of the base's own", margins.quality, lost_share, False))
    out += _written(a.ids, texts, margins, learned, prefix)
    if not out:
        known = ", ".join(a.columns)
        raise DataError(f"none of the scores {known} tells a harm: evaluate a task with accuracy or nats")
    return out


def _nats(a: Scores, b: Scores, margins: Margins, prefix: str) -> list[Harm]:
    if "nll" not in a.columns or "nll" not in b.columns:
        return []
    rise = b["nll"] - a["nll"]
    if "tokens" in a.columns:  # a ratio of sums: each item weighs as its tokens do
        return [Harm(f"{prefix}nats", "nats a token", margins.nats, rise / a["tokens"].mean(), False)]
    return [Harm(f"{prefix}nats", "nats an item", margins.nats, rise, False)]


def _written(
    ids: Sequence[str],
    texts: tuple[Mapping[str, str], Mapping[str, str]],
    margins: Margins,
    learned: Grams | None,
    prefix: str,
) -> list[Harm]:
    """Harms of the texts themselves; only where both models wrote one for every item."""
    before, after = texts
    if not all(i in before and i in after for i in ids):
        return []

    def change(measure: Callable[[str], float]) -> Floats:
        return np.array([float(measure(after[i])) - float(measure(before[i])) for i in ids])

    out = [Harm(f"{prefix}refusals", "share of answers", margins.refusals, change(is_refusal), True)]
    if learned is not None:
        margin = margins.memorisation
        out.append(Harm(f"{prefix}memorisation", "share of runs of 8 words", margin, change(learned.copied), False))
    return out


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORDS.findall(text.lower())
    return [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
