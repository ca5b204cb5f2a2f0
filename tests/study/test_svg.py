from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from limbeck.study.charts import Curve, cost_charts, curve_chart
from limbeck.study.svg import HEIGHT, WIDTH, draw, ticks
from limbeck.study.table import groups
from tests.reference.finished_arms import arm


def points(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_cheaper_is_left_and_a_larger_figure_is_up() -> None:
    rows = [arm("cheap", 2.0, disk_bytes=1_000_000), arm("best", 1.0, disk_bytes=30_000_000)]
    chart = cost_charts(groups(rows, [], None)[0], {"cheap": 1, "best": 2})[0]
    svg = draw(chart.figure, chart.title)
    root = ET.fromstring(svg)  # well-formed
    (cheap, best) = points(svg)
    assert cheap[0] < best[0] and cheap[1] < best[1], "two nats lie above one; pixels count downwards"
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(svg))
    titles = [t.text or "" for t in root.iter("title")]
    assert any("60 items, 1 seed" in t for t in titles) and 'stroke-dasharray="7 4"' in svg


def test_a_log_axis_puts_equal_factors_at_equal_distances() -> None:
    rows = [arm(n, 1.0, disk_bytes=b) for n, b in (("a", 10**6), ("b", 10**7), ("c", 10**8))]
    chart = cost_charts(groups(rows, [], None)[0], {"a": 1, "b": 2, "c": 3})[0]
    xs = [x for x, _ in points(draw(chart.figure, "x"))]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


def test_gaps_and_hostile_text() -> None:
    chart = curve_chart("train/<b>", [Curve(1, "<script>", 1, [1, 2, 3, 4], [1.0, None, 3.0, 2.0])], "r")
    svg = draw(chart.figure, 'a "quoted" <name>')
    ET.fromstring(svg)
    assert "<script>" not in svg and svg.count("M") >= 2
    line = next(p for p in re.findall(r'class="line" d="([^"]*)"', svg))
    assert line.count("M") == 2, "a missing value leaves a gap"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.35, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35])]
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
    assert ticks(1.0, 1.0) == [1.0] and ticks(0, math.inf) == [0]
