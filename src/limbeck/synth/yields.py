"""Accounting of filters: how many rows enter each, how many it keeps, and how sure the share is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from limbeck.data.rows import Rows
from limbeck.synth.filters import Filter, unique_names

__all__ = ["Share", "Step", "Yield", "sift"]


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion with its Wilson score interval (Wilson 1927), which has a width at 0 and at 1 too.

    Attributes:
        count: how many.
        of: of how many.
        low: lower end.
        high: upper end.
        level: share of such intervals that hold the true proportion.
    """

    count: int
    of: int
    low: float
    high: float
    level: float

    @classmethod
    def of_counts(cls, count: int, of: int, level: float = 0.95) -> Share:
        """Return ``count`` of ``of`` with its interval; of no item at all the interval is 0 to 1."""
        from scipy.stats import binomtest  # half a second to import

        if of == 0:
            return cls(0, 0, 0.0, 1.0, level)
        found = binomtest(count, of).proportion_ci(confidence_level=level, method="wilson")
        return cls(count, of, float(found.low), float(found.high), level)

    @property
    def value(self) -> float:
        """The proportion; 0 of no item."""
        return self.count / self.of if self.of else 0.0

    def describe(self) -> str:
        """Say it in words: ``73.2 % [71.0, 75.3], 1,200 of 1,640``."""
        span = f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} % {span}, {self.count:,} of {self.of:,}"


@dataclass(frozen=True, slots=True)
class Step:
    """One filter in its place.

    Attributes:
        name: of the filter.
        kept: share of the rows that reached it that it kept.
        alone: how many of all rows it drops when it is the only filter.
    """

    name: str
    kept: Share
    alone: int


@dataclass(frozen=True)
class Yield:
    """What a series of filters left.

    Attributes:
        steps: one a filter, in order.
        kept: the rows left.
        dropped: id -> name of the filter that dropped it first, and why.
        entered: rows before the first filter.
    """

    steps: tuple[Step, ...]
    kept: Rows
    dropped: Mapping[str, tuple[str, str]]
    entered: int

    @property
    def total(self) -> Share:
        """Share of all rows that is left."""
        return Share.of_counts(len(self.kept), self.entered)

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "entered": self.entered,
            "kept": len(self.kept),
            "total": asdict(self.total),
            "filters": [
                {"name": step.name, "dropped": step.kept.of - step.kept.count, "alone": step.alone, **asdict(step.kept)}
                for step in self.steps
            ],
        }

    def lines(self) -> list[str]:
        """Return one JSON object a dropped row: id, filter, reason."""
        return [
            json.dumps({"id": name, "filter": by, "reason": why}, ensure_ascii=False)
            for name, (by, why) in self.dropped.items()
        ]


def sift(rows: Rows, filters: Sequence[Filter], level: float = 0.95) -> Yield:
    """Put ``rows`` through ``filters``, one after the other.

    Args:
        rows: what was generated.
        filters: in order; each sees what the ones before it left.
        level: of the intervals.

    Raises:
        DataError: a row lacks a field that a filter reads, or two filters have one name.
    """
    unique_names(filters)
    steps, dropped, left = [], dict[str, tuple[str, str]](), rows
    for one in filters:
        alone = one.drops(rows)
        bad = alone if len(left) == len(rows) else one.drops(left)
        dropped |= {name: (one.name, why) for name, why in bad.items()}
        kept = Rows.of((row for row in left if row.id not in bad), rows.source, rows.dropped)
        steps.append(Step(one.name, Share.of_counts(len(kept), len(left), level), len(alone)))
        left = kept
    return Yield(tuple(steps), left, dropped, len(rows))
