from __future__ import annotations

import math
import re
from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from limbeck.errors import ConfigError
from limbeck.measure.perplexity import PERPLEXITY
from limbeck.measure.statistic import mean
from limbeck.study.table import ArmTable, findings, groups, markdown, rounded, short, span, tables
from tests.reference.finished_arms import NATS, Arm, arm


def shown(body: Sequence[RenderableType], width: int = 80) -> str:
    out = StringIO()
    console = Console(file=out, width=width, color_system=None)
    for part in body:
        console.print(part)
    return out.getvalue()


def made(rows: Sequence[Arm], *pairs: tuple[str, str]) -> tuple[tuple[ArmTable, ...], list]:  # type: ignore[type-arg]
    compared = findings(rows, pairs, None)
    return groups(rows, compared, None), compared


ROWS = (
    arm("teacher", 1.0, label="teacher, from scratch, four layers wide and deep", disk_bytes=3_170_744),
    arm("student", 2.0, label="student, taught by it", samples=[["Once", "\n[bold]upon</b> a time\n", ""]]),
    arm("alone", 2.2, label="the same student, alone"),
    arm("before", 7.0, label="before | after <b>", trained=False, data="b" * 64, source="dir/verse.txt", ms=None),
)


def test_terminal_fits_80_columns_with_every_number_whole() -> None:
    text = shown(tables("title", *made(ROWS, ("student", "teacher"))))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    line = next(ln for ln in text.splitlines() if "student," in ln and "0.79 M" in ln)
    assert re.search(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]\s+0\.79 M\s+74\.0 k\s+0\.79\s+1\.20\s+10", line)
    words = " ".join(text.split())
    assert "teacher, from" in words and "and deep" in words, "labels fold"
    assert "1 seed an arm" in words
    assert "[bold]upon</b> a time" in text, "what a model wrote is no markup"


def test_only_arms_of_one_set_share_a_table() -> None:
    grouped, _ = made(ROWS)
    assert [[line.row.name for line in g.lines] for g in grouped] == [["teacher", "student", "alone"], ["before"]]
    assert grouped[0].heading == "nats per token (lower is better) on 60 test items, toy:stories[test]"
    assert grouped[1].heading.endswith("verse.txt")


def test_sets_of_one_name_but_other_content_are_told_apart() -> None:
    grouped, _ = made([arm("a", 1.0), arm("b", 1.0, data="c" * 64)])
    assert len(grouped) == 2
    assert grouped[1].heading == grouped[0].heading + " (content cccccccc)"


def test_the_heading_tells_items_from_rows() -> None:
    data = {"test": {"source": "x", "hash": "a", "rows": 64}}
    grouped, _ = made([Arm("a", "a", [{**arm("a", 1.0).reports[0], "data": data}], arm("a", 1.0).scores)])
    assert grouped[0].heading == "nats per token (lower is better) on 60 test items of 64 rows, x"


def test_changes_count_from_the_arm_compared_against_most() -> None:
    grouped, compared = made(ROWS, ("teacher", "alone"), ("student", "teacher"), ("alone", "teacher"))
    assert grouped[0].reference == ROWS[0].label
    teacher, student, alone = grouped[0].lines
    assert teacher.change is None
    assert student.change is compared[1].comparison, "not computed twice"
    assert alone.change is not None and alone.change.difference == pytest.approx(1.2, abs=0.1)
    assert made(ROWS)[0][0].reference == ROWS[0].label, "without comparisons: the first"
    turned, _ = made(ROWS, ("teacher", "alone"))
    assert turned[0].reference == "the same student, alone"
    student = turned[0].lines[1]
    assert student.change is not None and student.change.difference == pytest.approx(-0.2, abs=0.1)


def test_seeds_have_a_column_where_arms_differ_in_them() -> None:
    rows = [arm("one", 1.0), arm("three", 1.0, seeds=3)]
    text = shown(tables("", *made(rows, ("one", "three"))))
    assert "seeds" in next(ln for ln in text.splitlines() if "figure" in ln)
    assert re.search(r"three\s+3\s", text) and "an arm" not in text
    assert "2 seeds an arm" in shown(tables("", *made([arm("two", 1.0, seeds=2)])))


def test_markdown_has_full_figures_and_cannot_be_broken_by_a_label() -> None:
    text = markdown("<i>title</i>", *made(ROWS, ("student", "teacher")))
    assert text.startswith("# &lt;i&gt;title&lt;/i&gt;\n\n**nats per token")
    assert "| 791,680 | 73,984 | 3.17 | 1.20 (1.10 to 1.60) | 10 |" in text
    assert "before \\| after &lt;b&gt; | 1 |" in text
    assert "| reference | 791,680 | - | 0.79 | - | - |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "student, taught by it against teacher, from" in text and "60 items, 1 seed (over items only), p = " in text
    assert "\n\n\n" not in text


def test_markdown_tells_the_other_figures_of_every_arm_too() -> None:
    rows = (arm("one", 1.0, seeds=3, statistics=(NATS, PERPLEXITY)), arm("two", 2.0, label="a | b"))
    text = markdown("", *made(rows, ("one", "two")))
    assert "\n\n| arm | perplexity (lower is better) |\n|---|---:|\n" in text
    figure = re.search(r"^\| one \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \|$", text, re.MULTILINE)
    assert figure is not None
    value, low, high = map(float, figure.groups())
    assert low < value < high and value == pytest.approx(math.e, rel=0.1)
    assert "| a \\| b | - |\n" in text
    assert "perplexity" not in markdown("", *made([arm("one", 1.0)]))


def test_what_must_stand_beside_a_figure_does() -> None:
    sentence = "predicted no: 60 (true 30): the model gives one answer to all"
    grouped, compared = made([arm("a", 1.0, seeds=2, notes={"told": [sentence]})])
    assert shown(tables("", grouped, compared), 200).count(sentence) == 1
    assert markdown("", grouped, compared).count(f"- a: {sentence}\n") == 1


def test_costs_over_seeds_are_median_and_mean_with_their_range() -> None:
    line = made([arm("a", 1.0, seeds=3)])[0][0].lines[0]
    assert line.ms_per_token is not None and line.seconds is not None
    assert (line.ms_per_token.middle, line.ms_per_token.low, line.ms_per_token.high) == (1.2, 1.1, 1.6)
    assert (line.seconds.middle, line.seconds.low, line.seconds.high) == (11.0, 10.0, 12.0)
    assert line.figure.seeds == 3


def test_what_was_not_measured_is_a_dash() -> None:
    row = arm("a", 1.0, trained=False)
    bare = Arm("a", "a", [{k: v for k, v in row.reports[0].items() if k != "cost"}], row.scores)
    grouped, compared = made([bare])
    line = grouped[0].lines[0]
    assert (line.parameters, line.trained, line.disk_bytes, line.ms_per_token, line.seconds) == (None,) * 5
    assert re.search(r"\](\s+-){5}\s*$", shown(tables("", grouped, compared)), re.MULTILINE)
    assert "| reference | - | - | - | - | - |" in markdown("", grouped, compared)


def test_one_item_leaves_its_figure_open() -> None:
    line = made([arm("a", 1.0, items=1)])[0][0].lines[0]
    assert span(line.figure) == "[-inf, inf]"


def test_another_figure_can_be_the_main_one() -> None:
    other = mean("nll", better="lower", unit="nats")
    rows = [arm("a", 1.0, statistics=(*ROWS[0].statistics, other))]
    assert groups(rows, [], "nll")[0].statistic is other
    with pytest.raises(ConfigError, match="does not measure 'nl', only nats per token, nll; did you mean 'nll'"):
        groups(rows, [], "nl")


def test_an_arm_without_scores_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="arm 'none' is to be compared but has no scores"):
        findings(ROWS, [("student", "none")], None)


def test_holm_counts_all_comparisons() -> None:
    compared = findings(ROWS, [("student", "teacher"), ("alone", "teacher")], None)
    assert [f.comparison.p_adjusted for f in compared] == [pytest.approx(2 * f.comparison.p) for f in compared]
    values = compared[0].to_json()
    assert (values["first"], values["second"], values["better"]) == ("student", "teacher", "a")
    assert values["verdict"].startswith(ROWS[0].label + " is better by")


@pytest.mark.parametrize(
    ("number", "text"),
    [(960, "960"), (73_984, "74.0 k"), (791_680, "0.79 M"), (124_439_808, "124.4 M"), (1_540_000_000, "1.54 B")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert short(number) == text


def test_digits_follow_the_interval() -> None:
    assert rounded(0.362318, 0.357023, 0.368203) == "0.362"
    assert rounded(42.318, 31.0, 55.0) == "42"
    assert rounded(0.5, -math.inf, math.inf) == "0.5"
    assert rounded(1 / 3, 1 / 3, 1 / 3) == "0.3333"
