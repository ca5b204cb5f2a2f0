from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from limbeck.measure.statistic import COUNT, ratio
from limbeck.study.charts import Curve, cost_charts, curve_chart, figure_chart
from limbeck.study.page import page, protocol
from limbeck.study.table import findings, groups, others
from tests.reference.finished_arms import NATS, Arm, arm, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"
LINES = [
    {"step": 0, "valid/nll": 6.0},
    {"step": 1, "train/loss": 5.0, "learning_rate": 0.1},
    {"step": 2, "train/loss": None},
    {"step": 2, "valid/nll": 0.5},
]


class Read(HTMLParser):
    """Text that is shown, elements with their attributes, and what stands in scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.parts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(source)
        self.words = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data
            self.parts.append(data)


def made(arms: Sequence[Arm], *pairs: tuple[str, str], title: str = "title") -> tuple[Read, list[dict[str, Any]]]:
    rows = [a for a in arms if a.scores]
    compared = findings(rows, pairs, None)
    read = Read(page(title, groups(rows, compared, None), compared, arms))
    return read, json.loads(read.scripts[0])


def study(folder: Path, **more: Any) -> list[Arm]:
    arms = [
        arm("teacher", 1.0, disk_bytes=3_170_000, ms=(3.0, 2.9, 3.1), folder=folder, **more),
        arm("student", 2.0, folder=folder, **more),
        arm("wasteful", 2.5, disk_bytes=5_000_000, ms=(4.0, 3.9, 9.0), folder=folder, **more),
        arm("before", 7.0, trained=False, data="b" * 64, source="verse.txt", folder=folder, **more),
    ]
    for one in arms:
        for seed, report in enumerate(one.reports):
            write_run(report, seed=seed, lines=LINES if report["verb"] == "finetune" else [])
    return arms


def test_the_answer_comes_first_with_interval_items_seeds_and_costs(tmp_path: Path) -> None:
    read, _ = made(study(tmp_path), ("student", "teacher"), ("student", "wasteful"))
    words = read.words
    assert re.search(
        r"student against teacher teacher is better by 1\.\d+ nats/token \[\d\.\d+, \d\.\d+\], 95 %, 60 items, 1 seed "
        r"\(over items only\), p = [\d.e-]+ after Holm over 2 "
        r"shown "
        r"0\.79 against 3\.17 MB on disk, 75 % less; "
        r"1\.20 \(1\.10 to 1\.60\) against 3\.00 \(2\.90 to 3\.10\) ms a token, 60 % less ",
        words,
    ), words[:900]
    assert words.index("is better by") < words.index("95 % interval change against")
    assert "Every arm ran under one seed" in words
    assert "4 arms, 4 runs, 1 seed an arm" in words
    assert "built-in" not in words and "None" not in words


def test_equal_and_overlapping_costs_are_no_difference() -> None:
    read, _ = made(
        [arm("a", 1.0), arm("b", 1.0, ms=(1.5, 1.4, 2.0)), arm("c", 1.0, disk_bytes=None, ms=None)], ("a", "b")
    )
    assert "0.79 against 0.79 MB on disk; 1.20" in read.words
    assert "ms a token, ranges overlap: no difference shown" in read.words


def test_what_holm_does_not_leave_is_said() -> None:
    arms = [arm("a", 1.000, items=40), arm("b", 1.1, items=40), arm("c", 1.0, items=40), arm("d", 1.0, items=40)]
    compared = findings(arms, [("a", "b")], None)
    assert compared[0].comparison.shown
    many, _ = made(arms, ("a", "b"), *[("c", "d")] * 30)
    assert "after Holm over 31 not shown after Holm" in many.words
    assert re.search(r"no difference shown at 40 items: .{0,150} not shown ", many.words)


def test_without_comparisons_or_title_the_page_says_so() -> None:
    read, _ = made([arm("a", 1.0, seeds=2)], title="")
    assert "names no arms to compare" in read.words and ("title", {}) in read.elements
    assert "under one seed" not in read.words and "1 arm, 2 runs, 2 seeds an arm" in read.words
    assert re.search(r"\b10 10 to 11\b", read.words), "training seconds carry their range"


def test_a_compared_arm_that_is_not_shown_needs_no_table() -> None:
    a, b = arm("a", 1.0), arm("b", 2.0)
    compared = findings([a, b], [("a", "b")], None)
    read = Read(page("t", groups([a], compared, None), compared, [a, b]))
    assert "a against b a is better by" in read.words and "MB on disk; " not in read.words


def test_table_has_every_cost_and_the_change(tmp_path: Path) -> None:
    read, _ = made(study(tmp_path), ("student", "teacher"))
    assert re.search(
        r"2 student \d\.\d+ \[\d\.\d+, \d\.\d+\] \+\d\.\d+ \[\d\.\d+, \d\.\d+\] worse 60 1 seed "
        r"0\.79 M 74\.0 k 0\.79 1\.20 1\.10 to 1\.60 10",
        read.words,
    )  # fmt: skip
    assert "4 before" in read.words and "60 test items, verse.txt" in read.words


def test_nothing_hostile_becomes_markup_and_only_known_scripts_may_run(tmp_path: Path) -> None:
    samples = [[f"Once {HOSTILE}", HOSTILE, HOSTILE]]
    arms = study(
        tmp_path,
        samples=samples,
        alarms=[{"name": "x", "fired": True, "sentence": HOSTILE}],
        protocol={"corpus": HOSTILE},
    )
    arms = [Arm(a.name, f"{a.label} {HOSTILE}", a.reports, a.scores) for a in arms]
    compared = findings(arms, [("student", "teacher")], None)
    source = page(f"t {HOSTILE}", groups(arms, compared, None), compared, arms)
    read = Read(source)
    assert read.text.count("<script>alert(1)</script>") >= 12, "shown as text"
    assert "49" not in re.findall(r"onerror=alert\(2\)>(..)", read.text)
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 2 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    policy = next(str(a["content"]) for t, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in read.scripts[1:]]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src 'sha256-{hashes[0]}'")
    for figure in json.loads(read.scripts[0]):
        for trace in figure["data"]:
            assert not any("<script" in text or "<img" in text for text in trace.get("hovertext", []))


def test_nothing_is_fetched_and_the_page_is_small(tmp_path: Path) -> None:
    arms = study(tmp_path)
    rows = [a for a in arms if a.scores]
    source = page("t", groups(rows, [], None), [], arms)
    read = Read(source)
    assert not any({"src", "href", "srcset"} & attributes.keys() for _, attributes in read.elements)
    assert "link" not in [tag for tag, _ in read.elements]
    assert len(source.encode()) < 150_000


def test_every_figure_is_one_that_plotly_knows_and_has_its_place_and_words(tmp_path: Path) -> None:
    read, figures = made(study(tmp_path), ("student", "teacher"))
    ids = [str(a["id"]) for _, a in read.elements if str(a.get("id", "")).startswith("chart-")]
    assert ids == [f"chart-{i}" for i in range(len(figures))]
    places = dict(zip(ids, [str(a["aria-label"]) for tag, a in read.elements if tag == "svg"], strict=True))
    assert len(figures) == 4
    for figure in figures:
        go.Figure(figure)  # raises on any name or value that plotly.js has not
    assert places["chart-0"].endswith("On the front, cheapest first: student, teacher.")
    assert "At the end: teacher run 1 0.5" in places["chart-3"]


def test_cost_charts_draw_intervals_and_the_front() -> None:
    rows = [
        arm("cheap", 2.0, disk_bytes=1_000_000, ms=(1.0, 1.0, 1.0)),
        arm("best", 1.0, disk_bytes=30_000_000),
        arm("beaten", 1.5, disk_bytes=40_000_000),
        arm("unknown", 1.5, disk_bytes=None, ms=None),
    ]
    group = groups(rows, [], None)[0]
    disk, time = cost_charts(group, {r.name: i for i, r in enumerate(rows, start=1)})
    drawn = disk.figure["data"][0]
    assert drawn["x"] == [1.0, 30.0] and drawn["line"]["shape"] == "hv"
    assert len(disk.figure["data"]) == 4 and disk.keys[-1] == (3, "beaten")
    f, point = group.lines[0].figure, disk.figure["data"][1]
    assert point["error_y"]["array"] == [f.high - f.value] and point["error_y"]["arrayminus"] == [f.value - f.low]
    assert "error_x" not in point and "error_x" not in time.figure["data"][1]
    assert time.figure["data"][2]["error_x"]["array"] == [pytest.approx(0.4)]
    assert "60 items, 1 seed" in point["hovertext"][0] and "95 % intervals over 60 items" in disk.caption
    assert disk.figure["layout"]["xaxis"]["type"] == "log" and "type" not in time.figure["layout"]["xaxis"]
    assert cost_charts(groups(rows[:1], [], None)[0], {"cheap": 1}) == []


def test_one_item_has_no_bar_rather_than_an_endless_one() -> None:
    group = groups([arm("a", 1.0, items=1), arm("b", 2.0, items=1)], [], None)[0]
    assert "error_y" not in cost_charts(group, {"a": 1, "b": 2})[0].figure["data"][1]
    read, _ = made([arm("a", 1.0, items=1), arm("b", 2.0, items=1)], ("a", "b"))
    assert "no difference can be shown at 1 item" in read.words and "[-inf, inf]" in read.words


def test_curves_keep_gaps_ends_and_thousands_of_points_thin() -> None:
    steps, values = list(range(1, 2502)), [1000.0 / s for s in range(1, 2502)]
    chart = curve_chart("train/loss", [Curve(9, "a <b>", 2, steps, values), Curve(1, "b", 1, [1, 2], [0.5, None])], "r")
    long, torn = chart.figure["data"]
    assert len(long["x"]) <= 1001 and (long["x"][0], long["x"][-1]) == (1, 2501)
    assert (long["line"]["color"], long["line"]["dash"]) == ("var(--arm-1)", "dash"), "the ninth arm: colour 1, dashed"
    assert torn["y"] == [0.5, None] and "not finite" in torn["hovertext"][1]
    assert chart.summary == "At the end: a <b> run 2 0.3998, b run 1 0.5."
    axis = chart.figure["layout"]["yaxis"]
    assert axis["type"] == "log" and "0.1" in axis["ticktext"] and "200" not in axis["ticktext"]
    near = curve_chart("x", [Curve(1, "b", 1, [1, 2], [0.3, 4.0])], "r").figure["layout"]["yaxis"]
    assert near["ticktext"][:4] == ["0.1", "0.2", "0.5", "1"]
    assert "type" not in curve_chart("x", [Curve(1, "b", 1, [1], [None])], "r").figure["layout"]["yaxis"]


def test_samples_stand_prompt_by_prompt() -> None:
    arms = [
        arm("a", 1.0, samples=[["Once", " a time", " upon"]]),
        arm("b", 1.0, samples=[["Once", " b time", " upon"]]),
    ]
    read, _ = made(arms)
    assert "1 a Once a time ● 2 b Once b time reference Once upon" in read.words


def test_alarms_and_warnings_are_shown_once() -> None:
    def alarm(name: str, fired: bool) -> dict[str, object]:
        return {"name": name, "value": 0.3, "threshold": 0.2, "fired": fired, "sentence": f"what {name} says"}

    arms = [
        arm(
            "a",
            1.0,
            seeds=2,
            alarms=[alarm("collapse", True), alarm("loops", False)],
            notes={"told": ["predicted no: 60"]},
        ),
        arm("b", 1.0, alarms=[alarm("generality", True)]),
    ]
    read, _ = made(arms)
    assert read.words.count("a : collapse: what collapse says") == 1
    assert "Alarms that fired: collapse (broken), generality (doubtful); 2 further checks passed" in read.words
    assert "collapse , 2 runs: the model gives one answer" in read.words, "what to do"
    assert "b : generality: what generality says" in read.words
    assert "what loops says" not in read.words and "2 further checks passed" in read.words
    assert read.words.count("a : predicted no: 60") == 1
    assert "Alarms" not in made([arm("a", 1.0)])[0].words


def test_protocols_that_differ_are_a_warning() -> None:
    alike = {"perplexity": 9.87, "tokenisation": "512 ids", "protocol": {"context": 128, "separator": "\n\n"}}
    assert protocol({"protocol": alike}) == {"tokenisation": "512 ids", "context": "128", "separator": r'"\n\n"'}
    assert protocol({}) == {}
    read, _ = made([arm("a", 1.0, protocol=alike), arm("b", 1.0, protocol=alike)])
    assert "not measured alike" not in read.words and "context 128" in read.words
    assert "9.87" not in read.words, "a figure without its interval"
    other = {**alike, "protocol": {"context": 64}}
    read, _ = made([arm("a", 1.0, protocol=alike), arm("b", 1.0, protocol=other)])
    assert re.search(r"not measured alike.*context: ● 1 128; ● 2 64.*separator: ", read.words)


def test_provenance_names_versions_commit_machine_seeds_and_data(tmp_path: Path) -> None:
    arms = study(tmp_path, start={"source": "random weights"})
    damaged = Path(arms[1].reports[0]["run"]) / "provenance.json"
    damaged.write_text("[1, ")
    (Path(arms[2].reports[0]["run"]) / "provenance.json").write_text("[]")
    read, _ = made([*arms, Arm("plain", "no scores", [{"verb": "pretrain"}], ())])
    words = read.words
    assert (
        "● 1 teacher finetune 0 2026-01-02 03:04:05 UTC 0123456789ab and changes random weights 2 steps, 1,234" in words
    )
    assert "● 2 student finetune - - unknown random weights" in words
    assert "● 3 wasteful finetune - - unknown" in words and "● 5 no scores pretrain - - unknown - -" in words
    assert words.count("python 3.11.7, torch 2.13.0") == 1 and "cpu some processor, cores 2" in words
    assert "device cpu, dtype float32, repeats 5" in words
    assert "test: verse.txt" in words and "60 rows, sha256 " + "b" * 64 in words


def test_two_figures_of_the_arms_make_a_chart_with_the_front_of_both() -> None:
    doubled = ratio("nll", COUNT, name="nats per item", better="lower")
    made_by = {"statistics": (NATS, doubled)}
    arms = [arm("a", 1.0, **made_by), arm("b", 2.0, **made_by), arm("c", 3.0, statistics=(NATS,))]
    (group,) = groups(arms, (), None)
    chart = figure_chart(group, {"a": 1, "b": 2, "c": 3}, "nats per item", "nats per token")
    assert chart is not None and chart.title == "nats per token against nats per item"
    front, *points = chart.figure["data"]
    assert len(points) == 2  # c does not measure both
    assert front["x"] == [points[0]["x"][0]] and points[0]["x"][0] == pytest.approx(10 * points[0]["y"][0])
    assert points[0]["error_x"]["array"][0] == pytest.approx(10 * points[0]["error_y"]["array"][0], rel=1e-6)
    assert figure_chart(group, {"a": 1, "b": 2, "c": 3}, "chrF", "nats per token") is None


def test_where_more_is_better_the_front_of_two_figures_begins_at_the_most() -> None:
    lines = ratio("nll", COUNT, name="lines", better="higher")
    (group,) = groups([arm(n, m, statistics=(NATS, lines)) for n, m in (("a", 1.0), ("b", 2.0))], (), None)
    chart = figure_chart(group, {"a": 1, "b": 2}, "lines", "nats per token")
    assert chart is not None
    assert chart.figure["data"][0]["x"] == sorted(chart.figure["data"][0]["x"], reverse=True)
    assert "best along first: b, a" in chart.summary


def test_generation_speed_stands_beside_the_figures_where_it_was_measured() -> None:
    def rated(*rates: float) -> list[dict[str, Any]]:
        return [
            {**r, "notes": {"generation": {"tokens_per_second": x}}} for r, x in zip(two.reports, rates, strict=True)
        ]

    two = arm("a", 1.0, seeds=2, statistics=(NATS,))
    fast = Arm("a", "a", rated(100.0, 300.0), two.scores, two.statistics)
    (group,) = groups([fast, arm("b", 2.0)], (), None)
    heading, first, second = others(group)
    assert heading[-1] == "tokens/s when generating (slowest to fastest)"
    assert first[-1] == "200 (100 to 300)" and second[-1] == "-"
