"""What a decoder's attention patterns cost and save at a length, beside dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern, Causal

__all__ = ["PatternCost", "pattern_costs", "total_keys_per_query"]


@dataclass(frozen=True, slots=True)
class PatternCost:
    """One pattern of a decoder at one length.

    Attributes:
        pattern: the pattern.
        layers: which layers have it.
        length: tokens of the sequence.
        keys_per_query: mean number of keys that a query reads.
        dense_keys_per_query: the same of dense attention.
        kv_slots: tokens whose keys and values a layer's cache keeps.
    """

    pattern: AnyPattern
    layers: tuple[int, ...]
    length: int
    keys_per_query: float
    dense_keys_per_query: float
    kv_slots: int

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "pattern": self.pattern.model_dump(mode="json"),
            "layers": list(self.layers),
            "length": self.length,
            "keys_per_query": self.keys_per_query,
            "dense_keys_per_query": self.dense_keys_per_query,
            "kv_slots": self.kv_slots,
        }

    def __str__(self) -> str:
        told = [f"{k} {v}" for k, v in self.pattern.model_dump(mode="json").items() if k != "kind" and v]
        named = " ".join((self.pattern.kind, *([f"({', '.join(told)})"] if told else [])))
        many = "layer" if len(self.layers) == 1 else "layers"
        share = self.keys_per_query / self.dense_keys_per_query
        return (
            f"{named} in {many} {', '.join(map(str, self.layers))}: {self.keys_per_query:,.1f} keys a query of "
            f"{self.dense_keys_per_query:,.1f} ({share:.1%}), cache of {self.kv_slots:,} tokens"
        )


def pattern_costs(config: DecoderConfig, length: int) -> tuple[PatternCost, ...]:
    """Return the cost of each pattern of a decoder for sequences of ``length`` tokens, in the order of its layers."""
    layers: dict[AnyPattern, list[int]] = {}
    for i in range(config.layers):
        layers.setdefault(config.pattern_at(i), []).append(i)
    dense = Causal().keys_per_query(length)
    return tuple(
        PatternCost(p, tuple(at), length, p.keys_per_query(length), dense, p.slots(length)) for p, at in layers.items()
    )


def total_keys_per_query(config: DecoderConfig, length: int) -> float:
    """Return the mean number of keys that a query reads in a layer, over all layers, in ``length`` tokens."""
    return sum(c.keys_per_query * len(c.layers) for c in pattern_costs(config, length)) / config.layers
