"""A claim: the arms that are compared, and the bars that say when it holds. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.worker import Turn

__all__ = ["Arm", "Bar", "Claim", "Quantity"]

Quantity = Literal["speed", "peak", "above state"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison, run in a process of its own.

    Attributes:
        name: of its row.
        work: imports what it needs, builds its model, and calls the turn after every step until that raises.
        allocator: "system": as glibc comes; "keep": freed memory is kept, by the settings Limbeck makes for itself.
        remark: what a reader must know about it.
        packages: what it needs installed; an arm without them is left out, and named as left out.
    """

    name: str
    work: Callable[[Turn], None]
    allocator: Literal["system", "keep"] = "keep"
    remark: str = ""
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure to reach: ``quantity`` of ``arm``, as a multiple of that of ``against``.

    ``speed`` must be at least ``bound``, a memory at most; without a bound the ratio is told alone.
    """

    arm: str
    against: str
    quantity: Quantity
    bound: float | None = None

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.quantity == "speed"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one benchmark file measures.

    Attributes:
        name: stem of its file.
        title: of its section.
        setting: shape, dtype, batch, what was drawn at random.
        arms: in the order of their turns.
        bars: what is to be reached.
        unit: of the speed.
        rounds: how often every arm has its turn.
        steps: steps a turn.
        warmup: steps before the first turn, untimed.
        equal: losses that must agree between the arms at the first step and at the last; the tolerance is a share of
            the first step's, or of the last's where that is larger.
        axis: what the number in an arm's name ("Limbeck, 256") is; the page then draws the arms over it.
        apart: the arms run one after the other instead of in turn, where they do not fit beside each other.
    """

    name: str
    title: str
    setting: str
    arms: tuple[Arm, ...]
    bars: tuple[Bar, ...] = ()
    unit: str = "tokens/s"
    rounds: int = 5
    steps: int = 2
    warmup: int = 2
    equal: dict[str, float] = field(default_factory=dict)
    apart: bool = False
    axis: str = ""
