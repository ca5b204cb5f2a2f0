"""A datasheet of a synthetic set: origin, licence, counts at each filter, cost (after Gebru et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.synth.yields import Yield

__all__ = ["Datasheet"]


@dataclass(frozen=True)
class Datasheet:
    """What a reader must know of a synthetic set.

    Attributes:
        name: of the set.
        teacher: model that wrote it.
        task: that it is made for.
        licence: under which it may be used; empty: not stated.
        origin: where it comes from: an address, a command, a store.
        found: what the filters left.
        against: name -> hash of the sets it was compared with.
        cost: paid in ``currency`` for all rows, those dropped too; None: not known.
        currency: of the cost.
        figures: further ones, such as the share of perfect sonnets.
    """

    name: str
    teacher: str
    task: str
    licence: str
    origin: str
    found: Yield
    against: Mapping[str, str] = field(default_factory=dict)
    cost: float | None = None
    currency: str = "USD"
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost_per_kept(self) -> float | None:
        """Cost of one row that is left; None where the cost is not known or nothing is left."""
        return None if self.cost is None or not len(self.found.kept) else self.cost / len(self.found.kept)

    def describe(self) -> dict[str, Any]:
        """Return plain values: what ``datasheet.json`` holds."""
        return {
            "name": self.name,
            "teacher": self.teacher,
            "task": self.task,
            "licence": self.licence or None,
            "origin": self.origin,
            "hash": self.found.kept.hash,
            "compared_with": dict(self.against),
            "yield": self.found.describe(),
            "cost": self.cost,
            "cost_per_kept": self.cost_per_kept,
            "currency": self.currency,
            "figures": dict(self.figures),
        }

    def markdown(self) -> str:
        """Return the same as a page of Markdown."""
        money = "not known" if self.cost is None else f"{self.cost:.4f} {self.currency}"
        each = "" if self.cost_per_kept is None else f" ({self.cost_per_kept:.6f} {self.currency} a kept row)"
        head = [
            f"# Datasheet: {self.name}",
            "",
            f"- Task: {self.task}",
            f"- Teacher: {self.teacher or 'not stated'}",
            f"- Licence: {self.licence or 'not stated'}",
            f"- Origin: {self.origin}",
            f"- Cost: {money}{each}",
            f"- Rows: {self.found.entered:,} made, {len(self.found.kept):,} kept (sha256 {self.found.kept.hash[:16]})",
            f"- Compared with: {', '.join(f'{n} ({h[:16]})' for n, h in self.against.items()) or 'no other set'}",
            "",
            f"| filter | entered | dropped | kept | {self._level:g} % interval | drops alone |",
            "|---|---|---|---|---|---|",
        ]
        table = [
            f"| {s.name} | {s.kept.of:,} | {s.kept.of - s.kept.count:,} | {s.kept.value:.1%} | "
            f"{s.kept.low:.1%} to {s.kept.high:.1%} | {s.alone:,} |"
            for s in self.found.steps
        ]
        tail = [f"- {name}: {value}" for name, value in self.figures.items()]
        return "\n".join([*head, *table, *([""] if tail else []), *tail]) + "\n"

    @property
    def _level(self) -> float:
        return 100 * (self.found.steps[0].kept.level if self.found.steps else 0.95)
