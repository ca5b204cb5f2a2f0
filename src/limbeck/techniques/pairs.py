"""Which techniques may follow which: every ordered pair is defined, or refused with what to do instead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from limbeck.techniques.table import TECHNIQUES
from limbeck.techniques.technique import Technique

__all__ = ["REFUSED", "check_pairs"]

_QUANTIZERS = tuple(name for name, kind in TECHNIQUES.items() if kind.rounds)
_TRAINED = "each decides alone which parameters are trained, so that the later one would cancel the earlier: choose one"
_LATE = "it would work on what the adapters or the frozen parts were chosen for: give it first"
_TWICE = "the later one would replace the earlier: give one"
_ROUNDED = "weights are rounded once: give one quantizer"
_ON_GRID = "weights on a grid cannot be multiplied any more: give it first"

REFUSED: dict[tuple[str, str], str] = {
    **{(a, b): _TRAINED for a in ("freeze", "lora") for b in ("freeze", "lora") if (a, b) != ("lora", "lora")},
    ("lora", "lora"): "one LoRA has all adapters: name every target in one, with ranks and alphas for each",
    **{(a, b): _LATE for a in ("freeze", "lora") for b in ("depth", "rotate", *_QUANTIZERS)},
    **{(a, b): _ROUNDED for a in _QUANTIZERS for b in _QUANTIZERS},
    **{(a, "rotate"): _ON_GRID for a in _QUANTIZERS},
    ("rotate", "rotate"): _TWICE,
    ("sparse_attention", "sparse_attention"): _TWICE,
}
"""(earlier, later), anywhere in the order in which they are applied -> why not; every other pair composes."""


def check_pairs(techniques: Sequence[Technique]) -> None:
    """Refuse techniques that cancel each other or come in an order that has no meaning.

    Raises:
        ValueError: names the two.
    """
    for earlier, later in combinations((t.name for t in techniques), 2):
        reason = REFUSED.get((earlier, later))
        if reason is not None:
            raise ValueError(f"'{later}' cannot follow '{earlier}' among the techniques: {reason}")
