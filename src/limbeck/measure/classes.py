"""Figures of a classifier: accuracy never without the majority rate and the predicted histogram (I27)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, ratio

__all__ = ["ClassCounts", "class_columns", "class_counts", "class_statistics", "collapse", "entropy_nats"]

Floats = NDArray[np.float64]

NONE = -1
"""Prediction of an item whose answer is none of the classes, as with an open vocabulary."""


def class_columns(truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> dict[str, Floats]:
    """Return per-item scores from which every figure of the set can be resampled.

    Args:
        truth: (n,) class of each item.
        predicted: (n,) class it was given, or -1 for none of them.
        labels: names of the classes.

    Returns:
        ``correct``, and of every class ``true:NAME``, ``predicted:NAME`` and ``hit:NAME``, each 0 or 1.

    Raises:
        DataError: lengths differ, or a class is out of range.
    """
    t, p = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if t.shape != p.shape:
        raise DataError(f"there are {p.size} predictions for {t.size} items")
    if t.size and (t.min() < 0 or max(t.max(), p.max()) >= len(labels) or p.min() < NONE):
        raise DataError(f"a class is outside 0 to {len(labels) - 1}")
    columns = {"correct": (t == p).astype(np.float64)}
    for c, name in enumerate(labels):
        columns[f"true:{name}"] = (t == c).astype(np.float64)
        columns[f"predicted:{name}"] = (p == c).astype(np.float64)
        columns[f"hit:{name}"] = ((t == c) & (p == c)).astype(np.float64)
    return columns


def class_statistics(columns: Collection[str]) -> tuple[Statistic, ...]:
    """Return accuracy, macro F1, the majority rate and, of two classes, F1 of the second, read off the columns' names.

    Macro F1 is the plain mean over classes that occur among the true or the predicted; F1 is 0 where nothing was hit.
    The majority rate is the accuracy of always giving the commonest class of this very set.
    """
    names = _names(columns)
    counted = tuple(f"{kind}:{name}" for kind in ("true", "predicted", "hit") for name in names)
    figures = [
        ratio("correct", COUNT, name="accuracy", bounds=(0, 1)),
        Statistic("macro F1", counted, _macro_f1, bounds=(0, 1)),
        Statistic("majority rate", (*(f"true:{name}" for name in names), COUNT), _majority, bounds=(0, 1)),
    ]
    if len(names) == 2:
        second = tuple(f"{kind}:{names[1]}" for kind in ("true", "predicted", "hit"))
        figures.append(Statistic("F1", second, _macro_f1, bounds=(0, 1)))
    return tuple(figures)


def _names(columns: Collection[str]) -> list[str]:
    return [column.removeprefix("true:") for column in columns if column.startswith("true:")]


def _macro_f1(sums: Floats) -> Floats:
    """(..., 3 x classes) sums of true, predicted and hit -> (...) mean F1."""
    true, predicted, hit = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    below = true + predicted
    f1 = np.divide(2 * hit, below, out=np.zeros_like(below), where=below > 0)
    present = np.maximum((below > 0).sum(axis=-1), 1)
    return np.asarray(f1.sum(axis=-1) / present)


def _majority(sums: Floats) -> Floats:
    items = sums[..., -1]
    return np.asarray(np.divide(sums[..., :-1].max(axis=-1), items, out=np.zeros_like(items), where=items > 0))


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """How often each class is true, was predicted, and both.

    Attributes:
        true: label -> items.
        predicted: label -> items that were given it.
        hit: label -> items of it that were given it.
        none: items that were given none of the labels.
    """

    true: Mapping[str, int]
    predicted: Mapping[str, int]
    hit: Mapping[str, int]
    none: int = 0

    @property
    def items(self) -> int:
        """All items."""
        return sum(self.true.values())

    @property
    def accuracy(self) -> float:
        """Share of items that were given their class."""
        return sum(self.hit.values()) / self.items

    @property
    def majority(self) -> tuple[str, float]:
        """The commonest true class and its share."""
        name = max(self.true, key=lambda label: self.true[label])
        return name, self.true[name] / self.items

    @property
    def answers(self) -> dict[str, int]:
        """What was predicted, an answer that is none of the labels included."""
        return dict(self.predicted) | ({"(none of them)": self.none} if self.none else {})

    @property
    def entropies(self) -> tuple[float, float]:
        """Entropy of the predicted and of the true histogram, in nats: 0 where all answers are one."""
        return entropy_nats(self.answers), entropy_nats(self.true)

    def sentences(self) -> tuple[str, ...]:
        """Return what must be shown with the accuracy wherever it is shown: histogram, entropy, every warning."""
        neither = f", {self.none} none of them" if self.none else ""
        shown = ", ".join(f"{name}: {self.predicted[name]} (true {self.true[name]})" for name in self.true)
        predicted, true = self.entropies
        spread = f"entropy {predicted:.2f} nats (true {true:.2f})"
        return (f"predicted {shown}{neither}; {spread}", *self.warnings())

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report: histograms, the majority, and every warning in words."""
        name, rate = self.majority
        predicted, true = self.entropies
        return {
            "true": dict(self.true),
            "predicted": self.answers,
            "correct": dict(self.hit),
            "predicted_entropy_nats": predicted,
            "true_entropy_nats": true,
            "accuracy": self.accuracy,
            "majority_class": name,
            "majority_rate": rate,
            "warnings": list(self.warnings()),
        }

    def warnings(self) -> tuple[str, ...]:
        """Return what a reader of the accuracy must know: collapse, one class only, classes that never occur."""
        name, rate = self.majority
        told = [collapse(self.true, self.answers)]
        missing = [label for label, count in self.true.items() if count == 0]
        if rate == 1:
            told.append(f"every item is of class '{name}': accuracy here says nothing about telling classes apart")
        elif missing:
            told.append(f"no item is of class {', '.join(missing)}")
        if rate < 1 and self.accuracy <= rate:
            told.append(f"accuracy {self.accuracy:.3f} is not above {rate:.3f}, that of always answering '{name}'")
        return tuple(sentence for sentence in told if sentence is not None)


def class_counts(scores: Scores) -> ClassCounts:
    """Add up what ``class_columns`` wrote."""
    names = _names(scores.columns)
    true, predicted, hit = (
        {name: round(float(scores[f"{kind}:{name}"].sum())) for name in names} for kind in ("true", "predicted", "hit")
    )
    return ClassCounts(true, predicted, hit, len(scores) - sum(predicted.values()))


def collapse(
    true: Mapping[str, int], predicted: Mapping[str, int], *, share: float = 0.95, entropy: float = 0.5, least: int = 8
) -> str | None:
    """Return a sentence if the predictions have collapsed to one answer, else None.

    Collapsed is: one answer has at least ``share`` of the predictions, and their entropy is under ``entropy`` times
    that of the true classes. The second keeps a set that is itself of nearly one class from ringing the bell.

    Args:
        true: label -> items of it.
        predicted: answer -> items that were given it.
        share: of the commonest answer.
        entropy: ratio of entropies.
        least: below so many items nothing is said: one answer may then be right by chance.
    """
    items = sum(predicted.values())
    if items < least or not any(predicted.values()):
        return None
    name = max(predicted, key=lambda label: predicted[label])
    top, given = predicted[name] / items, true.get(name, 0) / max(sum(true.values()), 1)
    if top < share or entropy_nats(predicted) >= entropy * entropy_nats(true):
        return None
    return f"collapsed: {predicted[name]} of {items} predictions are '{name}', which is true of {given:.1%}"


def entropy_nats(counts: Mapping[str, int]) -> float:
    """Return the entropy of a histogram that is not empty, in nats."""
    total = sum(counts.values())
    return 0.0 - math.fsum(c / total * math.log(c / total) for c in counts.values() if c > 0)
