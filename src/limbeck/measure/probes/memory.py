"""Memorisation: how much of what a model wrote stands in its training text, token by token (I31)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from limbeck.data.audit.text import mix, odd_numbers
from limbeck.data.batch import Example
from limbeck.measure.alarm import Alarm, Subject

__all__ = ["CopiedRun", "Memorised", "TrainingIndex"]

_BETWEEN = -1
"""Stands between the texts of the index: no run crosses from one into the next."""


@dataclass(frozen=True, eq=False)
class TrainingIndex:
    """Every n-gram of tokens of the training text, and where it stands.

    Attributes:
        stream: (t,) token ids, text after text, -1 between them.
        hashes: (g,) sorted hash of each n-gram.
        places: (g,) where it begins.
        order: tokens of an n-gram.
        texts: texts indexed.
        left_out: texts that the limit left out.
    """

    stream: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    order: int
    texts: int
    left_out: int

    @classmethod
    def of(cls, examples: Sequence[Example], *, order: int = 8, limit_tokens: int = 4_000_000) -> TrainingIndex:
        """Index the first ``limit_tokens`` tokens (24 bytes of memory each) of ``examples``, whole texts only."""
        pieces: list[NDArray[np.int64]] = []
        held = 0
        for example in examples:
            if pieces and held + len(example) > limit_tokens:
                break
            held += len(example)
            pieces += [example.ids.astype(np.int64), np.array([_BETWEEN])]
        stream = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        hashes = _gram_hashes(stream, order)
        borders = np.concatenate([[0], np.cumsum(stream == _BETWEEN)])
        border = borders[order : order + len(hashes)] > borders[: len(hashes)]
        places = np.flatnonzero(~border)
        by_hash = np.argsort(hashes[places], kind="stable")
        texts = len(pieces) // 2
        return cls(stream, hashes[places][by_hash], places[by_hash], order, texts, len(examples) - texts)

    def known(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """Return (len(ids) - order + 1,) whether the n-gram that begins at each token stands in the training text."""
        hashes = _gram_hashes(np.asarray(ids, dtype=np.int64), self.order)
        at = np.searchsorted(self.hashes, hashes)
        found = at < len(self.hashes)
        found[found] = self.hashes[at[found]] == hashes[found]
        return found

    def longest_run(self, ids: Sequence[int], *, most_places: int = 256) -> int:
        """Return tokens of the longest run that also stands in one training text; 0 where it is shorter than an n-gram.

        Args:
            ids: what was written.
            most_places: of an n-gram that stands in more places than this, only the first are followed.
        """
        written = np.asarray(ids, dtype=np.int64)
        hashes, best = _gram_hashes(written, self.order), 0
        for start in np.flatnonzero(self.known(ids)).tolist():
            low = int(np.searchsorted(self.hashes, hashes[start], "left"))
            high = int(np.searchsorted(self.hashes, hashes[start], "right"))
            rest = written[start:]
            if len(rest) <= best:
                break
            for place in self.places[low : min(high, low + most_places)].tolist():
                there = self.stream[place : place + len(rest)]
                unlike = np.flatnonzero(there != rest[: len(there)])
                best = max(best, int(unlike[0]) if unlike.size else len(there))
        return best


def _gram_hashes(ids: NDArray[np.int64], order: int) -> NDArray[np.uint64]:
    many = max(len(ids) - order + 1, 0)
    mixed = mix((ids + 2).astype(np.uint64))
    out = np.zeros(many, dtype=np.uint64)
    for j, factor in enumerate(odd_numbers(order, 8)):
        out += mixed[j : j + many] * factor
    return out


@dataclass(frozen=True, eq=False)
class Memorised:
    """Share of written n-grams that stand in the training text, above that of the true continuations.

    Where the true continuations are made of training phrases too, as in narrow data, copying is the task: hence the
    difference.
    """

    index: TrainingIndex
    threshold: float = 0.25
    name: ClassVar[str] = "memorisation"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent where less than one n-gram was written."""
        ours, total = _share(self.index, [w.ids for w in subject.written])
        truth, _ = _share(self.index, [w.reference for w in subject.written])
        if not total:
            return None
        excess = ours - truth
        return Alarm(
            self.name,
            excess,
            self.threshold,
            excess > self.threshold,
            f"{ours:.1%} of {total} generated {self.index.order}-token runs stand in the training text, {truth:.1%} of "
            f"those of the references; a difference up to {self.threshold:.0%} is expected{_limited(self.index)}",
        )


@dataclass(frozen=True, eq=False)
class CopiedRun:
    """The longest run of tokens copied from one training text (Carlini et al. 2023 take 50 tokens for extraction)."""

    index: TrainingIndex
    threshold: float = 50.0
    name: ClassVar[str] = "copied-run"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; fires where the run also exceeds the longest of the true continuations."""
        if not subject.written:
            return None
        longest = max(self.index.longest_run(w.ids) for w in subject.written)
        truth = max(self.index.longest_run(w.reference) for w in subject.written)
        return Alarm(
            self.name,
            float(longest),
            self.threshold,
            longest >= self.threshold and longest > truth,
            f"the longest run copied from one training text has {longest} tokens ({truth} in the references) in "
            f"{len(subject.written)} generations; fewer than {self.threshold:.0f} are expected{_limited(self.index)}",
        )


def _share(index: TrainingIndex, texts: Sequence[Sequence[int]]) -> tuple[float, int]:
    found = [index.known(ids) for ids in texts]
    total = sum(len(f) for f in found)
    return (sum(int(f.sum()) for f in found) / total if total else 0.0), total


def _limited(index: TrainingIndex) -> str:
    return f"; {index.left_out} training texts were not looked at" if index.left_out else ""
