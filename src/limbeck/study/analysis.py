"""What a finished study says as a whole: front probabilities, effects of knobs, quiet failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from limbeck.errors import DataError
from limbeck.study.effects import Effect, effects
from limbeck.study.front import Axis, Point, front_probability, kept, replicates
from limbeck.study.quiet import QuietFailure, flips, quiet_failures
from limbeck.study.stages import Table
from limbeck.study.table import ArmTable, Line, rounded, span

__all__ = ["Analysis", "analyse", "analysis_tables", "answer"]

_COSTS = (("MB on disk", "disk_bytes"), ("ms / token", "ms_per_token"))


@dataclass(frozen=True, slots=True)
class Analysis:
    """Findings on the arms of one group.

    Attributes:
        heading: of the group.
        axes: names of the axes of the front.
        front: arm -> probability that it is on the front of those axes; arms that lack an axis are missing.
        kept: arm -> answer, share lost and its interval against the reference, within ``margin``.
        flips: arm -> items from right to wrong, and from wrong to right, against the reference, first seed.
        effects: of the knobs that vary among the arms.
        quiet: what broke in arms whose task held.
        margin: share of the main figure that may be lost.
    """

    heading: str
    axes: tuple[str, ...]
    front: Mapping[str, float]
    kept: Mapping[str, Mapping[str, Any]]
    flips: Mapping[str, tuple[int, int]]
    effects: tuple[Effect, ...]
    quiet: tuple[QuietFailure, ...]
    margin: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return asdict(self)


def analyse(
    group: ArmTable,
    knobs: Mapping[str, Mapping[str, Any]],
    *,
    margin: float = 0.01,
    resamples: int = 2000,
    seed: int = 0,
) -> Analysis:
    """Analyse arms that were measured on the same rows.

    Args:
        group: the arms.
        knobs: arm -> knob -> level, for arms of a grid.
        margin: share of the main figure that may be lost without mattering.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    lines = [line for line in group.lines if len(line.row.scores[0]) > 1]
    axes, points = _points(group, lines)
    front = front_probability(points, axes, resamples=resamples, seed=seed) if len(points) > 1 else {}
    reference = next(line.row for line in group.lines if line.row.label == group.reference)
    others = [line.row for line in lines if line.row is not reference]
    held, turned = {}, {}
    for row in others:
        try:
            held[row.name] = asdict(kept(row.scores, reference.scores, group.statistic, margin, seed=seed))
        except DataError:  # a reference of 0, or other items: no share of it can be lost
            continue
        if all("correct" in one.columns for one in (reference.scores[0], row.scores[0])):
            turned[row.name] = flips(reference.scores[0], row.scores[0])
    quiet = quiet_failures(reference, others, group.statistic, margin=margin, seed=seed)
    found = _effects(group, lines, knobs, resamples, seed)
    return Analysis(group.heading, tuple(a.name for a in axes), front, held, turned, tuple(found), tuple(quiet), margin)


def answer(group: ArmTable, found: Analysis) -> str:
    """Say which arm is best, and which is the smallest that kept the reference's figure, with its bytes and losses."""
    sign = 1.0 if group.statistic.better == "lower" else -1.0
    best = min(group.lines, key=lambda line: sign * line.figure.value)
    f = best.figure
    told = f"Best {group.statistic.name}: {best.row.label}, {rounded(f.value, f.low, f.high)} {span(f)}."
    kept_names = {name for name, k in found.kept.items() if k["answer"] == "kept"}
    small = [line for line in group.lines if line.row.name in kept_names and line.disk_bytes is not None]
    origin = next(line for line in group.lines if line.row.label == group.reference)
    if not small or origin.disk_bytes is None:
        return f"{told} No arm is shown to keep {group.statistic.name} of {group.reference} within {found.margin:.0%}."
    least = min(small, key=lambda line: line.disk_bytes or 0)
    assert least.disk_bytes is not None
    share, k = least.disk_bytes / origin.disk_bytes, found.kept[least.row.name]
    quiet = sorted({q.broke for q in found.quiet if q.arm == least.row.label})
    lost = f"; but it broke {', '.join(quiet)}" if quiet else "; nothing else that was looked at broke"
    return (
        f"{told} Smallest that kept it within {found.margin:.0%} of {group.reference}: {least.row.label}, "
        f"{least.disk_bytes / 1e6:,.2f} MB ({share:.0%}), {max(k['loss'], 0):.2%} lost{lost}."
    )


def _points(group: ArmTable, lines: Sequence[Line]) -> tuple[list[Axis], list[Point]]:
    """Return the main figure and every cost that at least two arms have; arms that lack one of these are left out."""
    main = Axis(group.statistic.name, group.statistic.better, group.statistic)
    costs = {name: {line.row.name: v for line in lines if (v := _values(line, key))} for name, key in _COSTS}
    used = {name: values for name, values in costs.items() if len(values) > 1}
    points = [
        Point(line.row.name, {main.name: line.row.scores}, {name: v[line.row.name] for name, v in used.items()})
        for line in lines
        if all(line.row.name in v for v in used.values())
    ]
    return [main, *(Axis(name, "lower") for name in used)], points


def _values(line: Line, key: str) -> list[float]:
    """Measured values of each seed: bytes in MB, or milliseconds."""
    costs = [r.get("cost") or {} for r in line.row.reports]
    if key == "disk_bytes":
        return [c[key] / 1e6 for c in costs if c.get(key) is not None]
    speeds = [c.get("speed") or {} for c in costs]
    return [s["decode_ms_per_token"] for s in speeds if "decode_ms_per_token" in s]


def _effects(
    group: ArmTable, lines: Sequence[Line], knobs: Mapping[str, Mapping[str, Any]], resamples: int, seed: int
) -> list[Effect]:
    chosen = [line for line in lines if knobs.get(line.row.name)]
    shared = [tuple(knobs[line.row.name]) for line in chosen]
    chosen = [line for line, names in zip(chosen, shared, strict=True) if names == shared[0]]
    if len(chosen) < 2:
        return []
    axis = Axis(group.statistic.name, group.statistic.better, group.statistic)
    points = [Point(line.row.name, {axis.name: line.row.scores}) for line in chosen]
    drawn = replicates(points, [axis], resamples, seed)[:, :, 0]
    figures = np.array([line.figure.value for line in chosen])
    return effects([knobs[line.row.name] for line in chosen], figures, drawn)


def analysis_tables(found: Sequence[Analysis], labels: Mapping[str, str]) -> list[Table]:
    """Return the findings as tables; what is empty is left out, but quiet failures are told even where there are none.

    Args:
        found: one for each group of arms.
        labels: arm -> label.
    """
    made: list[Table] = []
    for one in found:
        made += [t for t in (_front(one, labels), _knobs(one)) if len(t.rows) > 1]
        if one.kept:
            made.append(_quiet(one))
    return made


def _front(one: Analysis, labels: Mapping[str, str]) -> Table:
    rows = [("arm", "P(on the front)", f"kept within {one.margin:.0%}", "share lost [90 %]", "right to wrong, back")]
    for name, label in labels.items():
        if name not in one.front and name not in one.kept:
            continue
        k, turned = one.kept.get(name), one.flips.get(name)
        rows.append((
            label,
            f"{one.front[name]:.2f}" if name in one.front else "-",
            "reference" if k is None else k["answer"],
            "-" if k is None else f"{k['loss']:+.2%} [{k['low']:+.2%}, {k['high']:+.2%}]",
            "-" if turned is None else f"{turned[0]}, {turned[1]}",
        ))  # fmt: skip
    note = f"Front of {', '.join(one.axes)}: paired bootstrap over items and seeds."
    return Table(f"How sure the front is: {one.heading}", tuple(rows), note)


def _knobs(one: Analysis) -> Table:
    rows = [("knob", "level", "effect [95 %]")]
    for e in one.effects:
        if e.value is None or e.low is None or e.high is None:
            told = "confounded with other knobs"
        else:
            value, low, high = (rounded(x, e.low, e.high) for x in (e.value, e.low, e.high))
            told = f"{'+' if e.value > 0 else ''}{value} [{low}, {high}]"
        rows.append((" x ".join(e.knobs), " x ".join(e.levels), told))
    note = "Against the mean over all levels; a pair of knobs: beyond the sum of both main effects."
    return Table(f"What each knob does: {one.heading}", tuple(rows), note)


def _quiet(one: Analysis) -> Table:
    rows = [("arm", "the task held", "what broke", "by how much")]
    rows += [(f.arm, f.held, f.broke, f.words) for f in one.quiet] or [("none found", "-", "-", "-")]
    note = "Looked at: other figures of the evaluation (Holm), alarms that the reference does not raise, and speed."
    return Table(f"Quiet failures: {one.heading}", tuple(rows), note)
