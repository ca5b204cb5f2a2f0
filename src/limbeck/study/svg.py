"""Draw a chart's figure as SVG: points with bars, lines, linear and logarithmic axes; colours of the style sheet."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["draw", "ticks"]

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 18, 52
_DASH = {"solid": "", "dash": "7 4", "dot": "2 4"}
_TAG = re.compile(r"<br\s*/?>")
Scale = Callable[[float], float]


def draw(figure: Mapping[str, Any], name: str) -> str:
    """Return an ``svg`` element.

    Args:
        figure: ``data`` and ``layout`` of ``charts``; ``hovertext`` is escaped already.
        name: what it shows, for who cannot see it.
    """
    layout = figure["layout"]
    xs, ys = (_extent(figure["data"], axis) for axis in ("x", "y"))
    x = _axis(layout["xaxis"], xs, _LEFT, WIDTH - _RIGHT)
    y = _axis(layout["yaxis"], ys, HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(layout, x, y)]
    parts += [_trace(trace, x[0], y[0]) for trace in figure["data"]]
    label = html.escape(name, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" preserveAspectRatio="xMidYMid meet">'
        f"{''.join(parts)}</svg>"
    )


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _extent(data: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    """Every value along an axis, ends of bars too."""
    out: list[float] = []
    for trace in data:
        values = [v for v in trace[axis] if v is not None]
        out += values
        bars = trace.get(f"error_{axis}")
        if bars and values:
            out += [values[0] + bars["array"][0], values[0] - bars["arrayminus"][0]]
    return [v for v in out if math.isfinite(v)] or [0.0, 1.0]


def _axis(
    layout: Mapping[str, Any], values: Sequence[float], start: float, end: float
) -> tuple[Scale, list[tuple[float, str]]]:
    """Scale of an axis in pixels, and its ticks with their text."""
    log = layout.get("type") == "log"
    low, high = min(values), max(values)
    if log:
        low, high = (v if v > 0 else min(x for x in values if x > 0) for v in (low, high))
        low, high = math.log10(low), math.log10(high)
    if layout.get("rangemode") == "tozero":
        low = min(low, 0.0)
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.1
    low, high = (low if layout.get("rangemode") == "tozero" else low - room), high + room

    def scale(value: float) -> float:
        at = math.log10(max(value, 10.0 ** (low - 1))) if log else value
        return start + (at - low) / (high - low) * (end - start)

    if log:
        chosen = zip(layout["tickvals"], layout["ticktext"], strict=True)
        shown = [(float(v), str(t)) for v, t in chosen if low <= math.log10(v) <= high]
    else:
        shown = [(v, f"{v:.6g}") for v in ticks(low, high)]
    return scale, shown


def _grid(
    layout: Mapping[str, Any], x: tuple[Scale, list[tuple[float, str]]], y: tuple[Scale, list[tuple[float, str]]]
) -> str:
    floor, out = HEIGHT - _BOTTOM, []
    for value, text in y[1]:
        at = y[0](value)
        out.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        out.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    last = -math.inf
    for value, text in x[1]:
        at = x[0](value)
        out.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{floor}"/>')
        if at - last > 8 * len(text) + 8:  # a tick without room keeps its line and loses its text
            out.append(f'<text class="tick" x="{at:.1f}" y="{floor + 18}" text-anchor="middle">{text}</text>')
            last = at
    along, up = (html.escape(layout[a]["title"]["text"]) for a in ("xaxis", "yaxis"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<text class="side" x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{along}</text>')
    turned = f'transform="translate(16 {(_TOP + floor) / 2:.0f}) rotate(-90)"'
    out.append(f'<text class="side" {turned} text-anchor="middle">{up}</text>')
    return "".join(out)


def _trace(trace: Mapping[str, Any], x: Scale, y: Scale) -> str:
    points = [None if b is None else (x(a), y(b)) for a, b in zip(trace["x"], trace["y"], strict=True)]
    parts = []
    if "lines" in trace["mode"]:
        line = trace["line"]
        dash = _DASH[line.get("dash", "solid")]
        style = f'stroke="{line["color"]}" stroke-width="{line["width"]}"' + (
            f' stroke-dasharray="{dash}"' if dash else ""
        )
        told = f"<title>{_title(trace['hovertext'][-1])}</title>" if trace.get("hovertext") else ""
        parts.append(
            f'<path class="line" d="{_path(points, line.get("shape") == "hv")}" fill="none" {style}>{told}</path>'
        )
    if "markers" in trace["mode"]:
        parts += [_marker(trace, i, at, x, y) for i, at in enumerate(points) if at is not None]
    return "".join(parts)


def _path(points: Sequence[tuple[float, float] | None], stepped: bool) -> str:
    """Line through the points; a value that is missing leaves a gap."""
    out, before = [], None
    for at in points:
        if at is not None:
            if before is None:
                out.append(f"M{at[0]:.1f} {at[1]:.1f}")
            else:
                out.append(f"H{at[0]:.1f}V{at[1]:.1f}" if stepped else f"L{at[0]:.1f} {at[1]:.1f}")
        before = at
    return "".join(out)


def _marker(trace: Mapping[str, Any], index: int, at: tuple[float, float], x: Scale, y: Scale) -> str:
    marker = trace.get("marker") or {"color": trace["line"]["color"], "symbol": "circle", "size": 5}
    colour, px, py = marker["color"], at[0], at[1]
    out = []
    for axis, scale in (("y", y), ("x", x)):
        bars = trace.get(f"error_{axis}")
        if bars:
            value = trace[axis][index]
            a, b = scale(value - bars["arrayminus"][index]), scale(value + bars["array"][index])
            d = f"M{px:.1f} {a:.1f}V{b:.1f}" if axis == "y" else f"M{a:.1f} {py:.1f}H{b:.1f}"
            out.append(f'<path d="{d}" stroke="{colour}" stroke-width="1.5"/>')
    out.append(_symbol(marker["symbol"], px, py, marker["size"] / 2, colour))
    if trace.get("text"):
        place = trace["textposition"]
        dx, anchor = (7, "start") if "right" in place else (-7, "end")
        dy = -7 if "top" in place else 17
        text = html.escape(trace["text"][index])
        out.append(
            f'<text class="name" x="{px + dx:.1f}" y="{py + dy:.1f}" fill="{colour}" text-anchor="{anchor}">'
            f"{text}</text>"
        )
    told = f"<title>{_title(trace['hovertext'][index])}</title>" if trace.get("hovertext") else ""
    return f'<g class="point" tabindex="0">{told}{"".join(out)}</g>'


def _symbol(name: str, x: float, y: float, r: float, colour: str) -> str:
    shapes: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle-up": [(0, -1.2), (1.2, 1), (-1.2, 1)],
        "cross": [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2),
                  (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
        "star": [(math.sin(k * math.pi / 5) * s, -math.cos(k * math.pi / 5) * s) for k in range(10)
                 for s in [1.5 if k % 2 == 0 else 0.6]],
    }  # fmt: skip
    if name not in shapes:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{colour}"/>'
    corners = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in shapes[name])
    return f'<polygon points="{corners}" fill="{colour}"/>'


def _title(text: str) -> str:
    """Text of a tooltip: its line breaks as new lines; what came from outside is escaped already."""
    return _TAG.sub("\n", text)
