"""An alarm: one number held against a threshold, and what it means in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from limbeck.measure.scores import Scores
from limbeck.model.decoder import Decoder

__all__ = ["Alarm", "Probe", "Subject", "Continuation"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a probe found.

    Attributes:
        name: of the probe.
        value: measured.
        threshold: beyond which it fires; the sentence says on which side that is.
        fired: it lies beyond.
        sentence: what was measured, on how much, and what is expected.
    """

    name: str
    value: float
    threshold: float
    fired: bool
    sentence: str

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continuation that a model wrote, beside the true one.

    Attributes:
        prompt: token ids that were given.
        ids: token ids it wrote, without an end token.
        reference: token ids that truly follow, without an end token; empty where none are known.
        ended: it closed with an end token.
        may_end: the true one closes with an end token, and would have had room to.
        text: ``ids`` as text.
        truth: ``reference`` as text.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    reference: tuple[int, ...] = ()
    ended: bool = False
    may_end: bool = False
    text: str = ""
    truth: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What probes may look at; one that finds nothing to judge is silent.

    Attributes:
        model: the model under test.
        written: what it wrote.
        scores: what an evaluation found, item by item.
    """

    model: Decoder | None = None
    written: Sequence[Continuation] = field(default=())
    scores: Scores | None = None


class Probe(Protocol):
    """Measures one thing beside the task.

    Attributes:
        name: as it stands in metrics and reports.
        threshold: beyond which its alarm fires.
    """

    @property
    def name(self) -> str:
        """See the class."""

    @property
    def threshold(self) -> float:
        """See the class."""

    def __call__(self, subject: Subject) -> Alarm | None:
        """Measure; None where there is nothing to judge, or too little."""
