"""Limits and objectives as text: ``bytes <= 40MB, ms_per_token <= 5, lost_generality <= 1%``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from limbeck.errors import ConfigError, nearest

__all__ = ["COSTS", "Limit", "SearchGoal", "excess", "parse_limits", "parse_objectives"]

Sense = Literal["maximise", "minimise"]

COSTS: dict[str, str] = {
    "bytes": "bytes of the weight files",
    "ms_per_token": "milliseconds to decode one token",  # nosec B105 - a figure
    "prefill_ms": "milliseconds to read the prompt of the speed protocol",
    "parameters": "parameters of the model",
    "memory_bytes": "bytes of weights in memory",
    "lost_generality": "share by which the figure of the entry 'general' is worse than the base's",
    "lost_quality": "share by which the figure of the first entry is worse than the base's",
}
"""What every candidate is measured on, beside the figures of the search's own entries."""

_LIMIT = re.compile(
    r"^\s*(?P<name>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+0-9.eE]+)\s*(?P<unit>[a-zA-Z%]*)\s*$"
)
_UNITS: dict[str, float] = {
    "": 1.0, "%": 0.01, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    "K": 1e3, "M": 1e6, "ms": 1.0, "s": 1e3,
}  # fmt: skip
_SENSES: dict[str, Sense] = {
    "maximise": "maximise", "maximize": "maximise", "minimise": "minimise", "minimize": "minimise",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limit:
    """One constraint.

    Attributes:
        name: of the measure.
        bound: in bytes, milliseconds, or a share.
        most: the measure may not be above the bound; else not below it.
        text: as it was written.
    """

    name: str
    bound: float
    most: bool
    text: str

    def excess(self, value: float | None) -> float:
        """Return by what share of the bound ``value`` breaks the limit; 0 or less: it holds. None breaks it."""
        if value is None or not math.isfinite(value):
            return math.inf
        over = value - self.bound if self.most else self.bound - value
        return over / max(abs(self.bound), 1e-12)


@dataclass(frozen=True, slots=True)
class SearchGoal:
    """What is made best.

    Attributes:
        name: of the measure.
        sense: direction.
    """

    name: str
    sense: Sense

    def better(self, a: float, b: float) -> bool:
        """Return whether ``a`` is better than ``b``."""
        return a > b if self.sense == "maximise" else a < b


def parse_limits(text: str, known: Iterable[str]) -> tuple[Limit, ...]:
    """Read limits, separated by commas.

    Args:
        text: such as ``bytes <= 40MB, accuracy >= 80%``.
        known: names of measures.

    Raises:
        ConfigError: a limit that cannot be read, an unknown unit, or an unknown measure (names the nearest).
    """
    names = list(known)
    out = []
    for part in (p for p in text.split(",") if p.strip()):
        found = _LIMIT.match(part)
        if found is None:
            raise ConfigError(f"limit '{part.strip()}' cannot be read: write it as 'bytes <= 40MB'")
        name, unit = found["name"], found["unit"]
        _check(name, names)
        if unit not in _UNITS:
            raise ConfigError(
                f"limit '{part.strip()}' has the unit '{unit}'{nearest(unit, _UNITS)}; known: B to GiB, %, ms, s"
            )
        try:
            bound = float(found["number"]) * _UNITS[unit]
        except ValueError:
            raise ConfigError(f"'{found['number']}' in limit '{part.strip()}' is no number") from None
        out.append(Limit(name, bound, found["sign"][0] == "<", part.strip()))
    return tuple(out)


def parse_objectives(text: str, known: Iterable[str]) -> tuple[SearchGoal, ...]:
    """Read one or several objectives, such as ``maximise accuracy, minimise bytes``.

    Raises:
        ConfigError: no direction, or an unknown measure.
    """
    names, out = list(known), []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        sense, _, name = part.partition(" ")
        if sense not in _SENSES or not name.strip():
            raise ConfigError(f"objective '{part}' cannot be read: write it as 'maximise accuracy'")
        _check(name.strip(), names)
        out.append(SearchGoal(name.strip(), _SENSES[sense]))
    if not out:
        raise ConfigError("a search needs an objective, such as 'maximise accuracy'")
    return tuple(out)


def excess(limits: Iterable[Limit], values: Mapping[str, float | None]) -> dict[str, float]:
    """Return for each limit the share by which ``values`` break it; 0 or less: it holds."""
    return {limit.text: limit.excess(values.get(limit.name)) for limit in limits}


def _check(name: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigError(f"no measure is called '{name}', only {', '.join(known)}{nearest(name, known)}")
