"""Quiet failures: arms whose task held while something else broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import DataError
from limbeck.measure.scores import Scores, align
from limbeck.measure.statistic import Statistic
from limbeck.measure.stats import compare, holm
from limbeck.study.front import kept

__all__ = ["QuietFailure", "flips", "quiet_failures"]

_ALPHA = 0.05
_SLOWER = 1.05  # a smaller model may take this multiple of its origin's time before it counts as slower


@dataclass(frozen=True, slots=True)
class QuietFailure:
    """One thing that broke in an arm whose task held.

    Attributes:
        arm: label of the arm.
        held: how the task held, in words.
        broke: what broke: the name of a figure, an alarm or a cost.
        words: by how much, with an interval where there is one.
    """

    arm: str
    held: str
    broke: str
    words: str


def flips(origin: Scores, arm: Scores, column: str = "correct") -> tuple[int, int]:
    """Count items that turned from right to wrong, and from wrong to right.

    Raises:
        DataError: the items differ, or ``column`` is not a score of both.
    """
    a, b = align(origin, arm)
    before, after = a[column] > 0.5, b[column] > 0.5
    return int(np.sum(before & ~after)), int(np.sum(~before & after))


def quiet_failures(
    origin: Any, arms: Sequence[Any], metric: Statistic, *, margin: float = 0.01, seed: int = 0
) -> list[QuietFailure]:
    """List what broke in every arm whose ``metric`` was not shown to be worse than the origin's.

    Looked at are the other figures of the same evaluation (Holm over all of them), alarms that fired in the arm and
    not in the origin, and time a token of an arm with fewer bytes.

    Args:
        origin: the arm that the others are measured against (see ``table.Row``).
        arms: with the same items.
        metric: the task's main figure.
        margin: share of it that may be lost; above 0.
        seed: of the resampling.
    """
    out: list[QuietFailure] = []
    for arm in arms:
        try:
            task = compare(list(origin.scores), list(arm.scores), metric, seed=seed)
        except DataError:  # other items: nothing can be paired
            continue
        if task.better == "a":
            continue
        held = _held(origin, arm, metric, margin, seed)
        out += [QuietFailure(arm.label, held, name, words) for name, words in _worse(origin, arm, metric, seed)]
        out += [QuietFailure(arm.label, held, name, words) for name, words in _alarms(origin, arm)]
        out += [QuietFailure(arm.label, held, name, words) for name, words in _costs(origin, arm)]
    return out


def _held(origin: Any, arm: Any, metric: Statistic, margin: float, seed: int) -> str:
    try:
        found = kept(arm.scores, origin.scores, metric, margin, seed=seed)
    except DataError:
        return f"{metric.name} not shown to be worse"
    if found.answer == "kept":
        return f"{metric.name} kept within {margin:.0%}"
    return f"{metric.name} not shown to be worse (a loss of up to {max(found.high, 0):.1%} is possible)"


def _worse(origin: Any, arm: Any, metric: Statistic, seed: int) -> list[tuple[str, str]]:
    """Other figures that are shown to be worse after Holm."""
    theirs = {s.name for s in origin.statistics}
    others = [s for s in arm.statistics if s.name != metric.name and s.name in theirs]
    found = {s.name: compare(list(origin.scores), list(arm.scores), s, seed=seed) for s in others}
    adjusted = holm({name: c.p for name, c in found.items()})
    worse = [c for name, c in found.items() if c.better == "a" and adjusted[name] <= _ALPHA]
    return [(c.statistic.name, f"{c.a:.4g} to {c.b:.4g} [{c.low:+.3g}, {c.high:+.3g}]") for c in worse]


def _alarms(origin: Any, arm: Any) -> list[tuple[str, str]]:
    before = {a["name"] for r in origin.reports for a in r.get("alarms") or [] if a["fired"]}
    fired: dict[str, list[str]] = {}
    for report in arm.reports:
        for alarm in report.get("alarms") or []:
            if alarm["fired"] and alarm["name"] not in before:
                fired.setdefault(alarm["name"], []).append(alarm["sentence"])
    seeds = len(arm.reports)
    many = {name: f" ({len(said)} of {seeds} seeds)" if seeds > 1 else "" for name, said in fired.items()}
    return [(name, said[0] + many[name]) for name, said in fired.items()]


def _costs(origin: Any, arm: Any) -> list[tuple[str, str]]:
    """Return the finding of a smaller model that is slower: its fastest repeat above the slowest of the origin."""
    before, after = (_speed(r.reports) for r in (origin, arm))
    small, large = (_bytes(r.reports) for r in (arm, origin))
    if not before or not after or small is None or large is None or small >= large:
        return []
    if min(s["decode_ms_fastest"] for s in after) <= _SLOWER * max(s["decode_ms_slowest"] for s in before):
        return []
    a, b = (float(np.median([s["decode_ms_per_token"] for s in some])) for some in (before, after))
    return [("speed", f"{b:.2f} ms a token against {a:.2f}, though it is {small / large:.0%} of the bytes")]


def _speed(reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found = [(r.get("cost") or {}).get("speed") or {} for r in reports]
    return [s for s in found if "decode_ms_fastest" in s]


def _bytes(reports: Sequence[Mapping[str, Any]]) -> float | None:
    found = [b for r in reports if (b := (r.get("cost") or {}).get("disk_bytes")) is not None]
    return float(np.median(found)) if found else None
