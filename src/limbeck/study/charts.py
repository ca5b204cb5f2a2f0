"""Charts of a study's page, as figures in plain values: quality against cost, and training curves.

Colours are written ``var(--arm-1)``: those of the page's style sheet, light, dark or printed; ``svg`` draws them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.measure.statistic import Better, Statistic
from limbeck.measure.stats import Interval
from limbeck.study.pareto import front
from limbeck.study.table import ArmTable, Line, Spread, figure, rounded, span

__all__ = ["COLOURS", "Chart", "Curve", "cost_charts", "curve_chart", "figure_chart", "number"]

COLOURS = 8
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_DASHES = ("solid", "dash", "dot")
_PLACES = ("top right", "top left", "bottom right", "bottom left")  # so that numbers of neighbours do not overlap
_MOST_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes:
        title: what is drawn over what.
        caption: how to read it: intervals, items, seeds.
        summary: the same in words, for who cannot see it.
        figure: ``data`` and ``layout``, in the words of plotly's figures, for ``svg.draw``.
        keys: (number of the arm, its label) of each arm drawn.
    """

    title: str
    caption: str
    summary: str
    figure: dict[str, Any]
    keys: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's curve: values at steps; a value that was not finite is None and leaves a gap."""

    number: int
    label: str
    run: int
    steps: Sequence[int]
    values: Sequence[float | None]


def number(arm: int) -> dict[str, int | str]:
    """Return the colour and symbol of an arm, by its number from 1: equal all over the page."""
    return {"colour": (arm - 1) % COLOURS + 1, "symbol": _SYMBOLS[(arm - 1) // COLOURS % len(_SYMBOLS)]}


def cost_charts(group: ArmTable, numbers: Mapping[str, int]) -> list[Chart]:
    """Return the quality against bytes on disk, and against time a token, each with its Pareto front.

    Args:
        group: arms of one table; those whose cost was not measured are left out.
        numbers: name of an arm -> its number on the page.
    """

    def megabytes(line: Line) -> Spread | None:
        return None if line.disk_bytes is None else Spread(*[line.disk_bytes / 1e6] * 3)

    drawn = (
        ("weights on disk", "MB", megabytes, ""),
        ("time a token", "ms", lambda ln: ln.ms_per_token, "Bars along the time: fastest to slowest repeat."),
    )
    return [c for what in drawn if (c := _cost_chart(group, numbers, *what)) is not None]


def figure_chart(group: ArmTable, numbers: Mapping[str, int], across: str, up: str) -> Chart | None:
    """Return one figure against another, such as diversity and quality; None where fewer than two arms measure both.

    Args:
        group: arms of one table.
        numbers: name of an arm -> its number on the page.
        across: name of the figure along the chart.
        up: name of the figure up it.
    """
    found = [(line, figure(line.row, across), figure(line.row, up)) for line in group.lines]
    points = [
        _Point(line, Spread(x.value, x.low, x.high), y) for line, x, y in found if x is not None and y is not None
    ]
    if len(points) < 2:
        return None
    known = {s.name: s for line in group.lines for s in line.row.statistics}
    sides = f"{across} ({known[across].better} is better)"
    return _scatter(points, numbers, known[up], across, sides, known[across].better, "Bars along too.", "")


def _cost_chart(
    group: ArmTable,
    numbers: Mapping[str, int],
    what: str,
    unit: str,
    cost: Callable[[Line], Spread | None],
    remark: str,
) -> Chart | None:
    points = [_Point(ln, c, ln.figure) for ln in group.lines if (c := cost(ln)) is not None and c.middle > 0]
    if len(points) < 2:
        return None
    return _scatter(points, numbers, group.statistic, what, f"{what}, {unit} (less is better)", "lower", remark, unit)


@dataclass(frozen=True, slots=True)
class _Point:
    """An arm in a chart: its place along, and its figure up."""

    line: Line
    along: Spread
    figure: Interval


def _scatter(
    points: Sequence[_Point],
    numbers: Mapping[str, int],
    up: Statistic,
    what: str,
    side: str,
    along: Better,
    remark: str,
    unit: str,
) -> Chart:
    sign = 1.0 if along == "lower" else -1.0
    kept = front([(sign * p.along.middle, p.figure.value) for p in points], up.better)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [points[i].along.middle for i in kept],
            "y": [points[i].figure.value for i in kept],
            "line": {"shape": "hv", "dash": "dash", "width": 1.5, "color": "var(--muted)"},
            "hoverinfo": "skip",
        }
    ]
    data += [_marker(p, numbers[p.line.row.name], unit) for p in points]
    layout = {
        "xaxis": _axis(side, [p.along.middle for p in points]),
        "yaxis": _axis(f"{up.name} ({up.better} is better)", [p.figure.value for p in points]),
    }
    names = [points[i].line.row.label for i in kept]
    items = " or ".join(str(n) for n in sorted({p.figure.items for p in points}))
    return Chart(
        title=f"{up.name} against {what}",
        caption=f"Bars: 95 % intervals over {items} items.{' ' if remark else ''}{remark} Dashed: the Pareto front, "
        "arms that none beats on both; it joins the figures, so look whether the bars of neighbours overlap.",
        summary=f"On the front, {'cheapest' if unit else 'best along'} first: {', '.join(names)}.",
        figure={"data": data, "layout": layout},
        keys=tuple((numbers[p.line.row.name], p.line.row.label) for p in points),
    )


def _marker(p: _Point, arm: int, unit: str) -> dict[str, Any]:
    f, along, style = p.figure, p.along, number(arm)
    colour = f"var(--arm-{style['colour']})"
    shown = f"{rounded(f.value, f.low, f.high)} {span(f)}, {f.items} items, {f.seeds} seed{'' if f.seeds == 1 else 's'}"
    point: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "cliponaxis": False,  # else the number of a point near the edge is cut
        "x": [along.middle],
        "y": [f.value],
        "text": [str(arm)],
        "textposition": _PLACES[(arm - 1) % len(_PLACES)],
        "textfont": {"color": colour, "size": 14},
        "marker": {"size": 10, "symbol": style["symbol"], "color": colour},
        # a little HTML, <br> alone: what comes from outside is escaped
        "hovertext": [f"{arm} {html.escape(p.line.row.label)}<br>{shown}<br>{along.middle:.4g} {unit}".rstrip()],
        "hoverinfo": "text",
    }
    if math.isfinite(f.low) and math.isfinite(f.high):
        point["error_y"] = _bars(Spread(f.value, f.low, f.high), colour)
    if math.isfinite(along.low) and math.isfinite(along.high) and along.high > along.low:
        point["error_x"] = _bars(along, colour)
    return point


def _bars(of: Spread, colour: str) -> dict[str, Any]:
    # a percentile interval need not hold the figure itself; a length is not negative
    up, down = max(0.0, of.high - of.middle), max(0.0, of.middle - of.low)
    return {
        "type": "data",
        "symmetric": False,
        "array": [up],
        "arrayminus": [down],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def curve_chart(name: str, curves: Sequence[Curve], remark: str) -> Chart:
    """Return one metric over training steps, one line for each run.

    Args:
        name: of the metric, as ``metrics.jsonl`` has it.
        curves: at least one.
        remark: what to know when reading it.
    """
    data: list[dict[str, Any]] = []
    for c in curves:
        kept = _thinned(len(c.steps))
        style = number(c.number)
        arm = f"{c.number} {html.escape(c.label)}, run {c.run}"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(kept) < 8 else "lines",
                "x": [c.steps[i] for i in kept],
                "y": [c.values[i] for i in kept],
                "line": {
                    "color": f"var(--arm-{style['colour']})",
                    "dash": _DASHES[(c.number - 1) // COLOURS % len(_DASHES)],
                    "width": 1.8,
                },
                "hovertext": [f"{arm}<br>step {c.steps[i]}: {_value(c.values[i])}" for i in kept],
                "hoverinfo": "text",
            }
        )
    values = [v for c in curves for v in c.values if v is not None]
    layout = {"xaxis": {"title": {"text": "optimiser step"}, "rangemode": "tozero"}, "yaxis": _axis(name, values)}
    keys = dict.fromkeys((c.number, c.label) for c in curves)
    ends = ", ".join(
        f"{c.label} run {c.run} {_value(next((v for v in reversed(c.values) if v is not None), None))}" for c in curves
    )
    title = f"{name} while training"
    return Chart(title, remark, f"At the end: {ends}.", {"data": data, "layout": layout}, tuple(keys))


def _value(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _thinned(points: int) -> list[int]:
    """Return indices of at most about a thousand points, the last among them."""
    step = math.ceil(points / _MOST_POINTS)
    kept = list(range(0, points, max(1, step)))
    return kept if not kept or kept[-1] == points - 1 else [*kept, points - 1]


def _axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Logarithmic where positive values spread over more than a factor of ten."""
    if not values or min(values) <= 0 or max(values) <= 10 * min(values):
        return {"title": {"text": title}}
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    digits = (1, 2, 5) if high - low < 4 else (1,)
    ticks = [float(f"{d}e{power}") for power in range(low, high + 1) for d in digits]
    return {
        "title": {"text": f"{title}, log scale"},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }
