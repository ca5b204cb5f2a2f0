"""Line plots as plain SVG, two panels beside each other."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Panel", "draw"]

_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 420, 300, 70, 40, 50
_COLOURS = ("#0b6e99", "#c2571a", "#4a7c2f", "#7a3e9d")


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: x to the logarithm of base 2, y linear from 0.

    Attributes:
        title: what is drawn.
        across: what x is.
        lines: (x, y) points by name.
    """

    title: str
    across: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def draw(panels: Sequence[Panel]) -> str:
    """An SVG of the panels, readable on light and on dark ground."""
    body = "".join(_panel(p, i * _WIDE) for i, p in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE * len(panels)} {_HIGH}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n'
    )


def _panel(panel: Panel, left: float) -> str:
    xs = sorted({x for line in panel.lines.values() for x, _ in line})
    top = _nice(max(y for line in panel.lines.values() for _, y in line))
    x0, x1, y0, y1 = left + _LEFT, left + _WIDE - 20, _HIGH - _BOTTOM, _TOP
    span = math.log2(xs[-1] / xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * math.log2(x / xs[0]) / span, y0 + (y1 - y0) * y / top

    out = [
        f'<text x="{(x0 + x1) / 2}" y="16" text-anchor="middle" font-weight="bold">{html.escape(panel.title)}</text>'
    ]
    out.append(f'<text x="{(x0 + x1) / 2}" y="{_HIGH - 8}" text-anchor="middle">{html.escape(panel.across)}</text>')
    for i in range(5):
        y = top * i / 4
        _, py = at(xs[0], y)
        out.append(f'<line x1="{x0}" x2="{x1}" y1="{py:.1f}" y2="{py:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{x0 - 6}" y="{py + 4:.1f}" text-anchor="end">{y:,.10g}</text>')
    for x in xs:
        px, _ = at(x, 0)
        out.append(f'<text x="{px:.1f}" y="{y0 + 18}" text-anchor="middle">{_short(x)}</text>')
    for i, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        points = [at(x, y) for x, y in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points]
        out.append(f'<text x="{x0 + 8}" y="{_TOP - 6 + 14 * i}" fill="{colour}">{html.escape(name)}</text>')
    return "\n".join(out) + "\n"


def _short(x: float) -> str:
    return f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"


def _nice(y: float) -> float:
    """The least 1, 2, 4, 6 or 8 times a power of ten that is not below ``y``."""
    power = 10.0 ** math.floor(math.log10(y)) if y > 0 else 1.0
    return next(m * power for m in (1, 2, 4, 6, 8, 10) if m * power >= y * 0.999)
