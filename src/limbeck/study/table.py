"""A study's tables as values, then for an 80-column terminal and, with full figures, as Markdown."""

from __future__ import annotations

import html
import math
import statistics as averages
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.errors import ConfigError, nearest
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.measure.stats import Comparison, Interval, Seeds, adjust, compare, interval, verdict
from limbeck.study.costs import costs

__all__ = [
    "PairVerdict",
    "ArmTable",
    "Line",
    "ArmRow",
    "Spread",
    "change",
    "figure",
    "findings",
    "groups",
    "markdown",
    "others",
    "rounded",
    "short",
    "span",
    "tables",
    "told",
]


class ArmRow(Protocol):
    """An arm that has run, as the table needs it."""

    @property
    def name(self) -> str:
        """Name of the arm."""

    @property
    def label(self) -> str:
        """How the table calls it."""

    @property
    def reports(self) -> Sequence[Mapping[str, Any]]:
        """Report of each seed."""

    @property
    def scores(self) -> Sequence[Scores]:
        """Scores of each seed."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Figures, the main one first."""


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """One comparison, judged among all of them (Holm), with its words."""

    first: str
    second: str
    labels: tuple[str, str]
    comparison: Comparison
    words: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "first": self.first,
            "second": self.second,
            **self.comparison.to_json(),
            "verdict": self.words,
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """A measured cost: its middle, the least and the most that was seen."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One arm in a table; what was not measured is None.

    Attributes:
        row: the arm.
        figure: its main figure with its interval.
        parameters: of the model.
        trained: parameters that were trained.
        disk_bytes: of the saved weights.
        ms_per_token: median of the seeds, the fastest and the slowest repeat.
        seconds: of training: mean, shortest and longest of the seeds.
        change: against the reference arm; None for the reference itself.
    """

    row: ArmRow
    figure: Interval
    parameters: int | None
    trained: int | None
    disk_bytes: int | None
    ms_per_token: Spread | None
    seconds: Spread | None
    change: Comparison | None


@dataclass(frozen=True, slots=True)
class ArmTable:
    """Arms measured on the same rows: only these share a table.

    Attributes:
        heading: names figure, direction, items and set.
        statistic: the figure.
        lines: one for each arm, in order.
        reference: label of the arm that changes are counted from.
    """

    heading: str
    statistic: Statistic
    lines: tuple[Line, ...]
    reference: str


def findings(rows: Sequence[ArmRow], pairs: Sequence[tuple[str, str]], metric: str | None) -> list[PairVerdict]:
    """Compare arms pairwise on the items they share, every pair's p adjusted for their number.

    Raises:
        ConfigError: an arm of ``pairs`` has no scores, or does not measure ``metric``.
    """
    by_name = {r.name: r for r in rows}
    compared: list[tuple[ArmRow, ArmRow, Comparison]] = []
    for first, second in pairs:
        for name in (first, second):
            if name not in by_name:
                raise ConfigError(
                    f"arm '{name}' is to be compared but has no scores: give its recipe a part to measure"
                )
        a, b = by_name[second], by_name[first]
        compared.append((b, a, _against(b, a, metric)))
    judged = adjust({i: c for i, (_, _, c) in enumerate(compared)})
    return [
        PairVerdict(f.name, s.name, (f.label, s.label), judged[i], verdict(judged[i], (s.label, f.label)))
        for i, (f, s, _) in enumerate(compared)
    ]


def groups(rows: Sequence[ArmRow], compared: Sequence[PairVerdict], metric: str | None) -> tuple[ArmTable, ...]:
    """Put arms together that were measured on the same rows, with their changes against one of them.

    The reference of a table is the arm that others are most often compared against; without comparisons, the first.

    Raises:
        ConfigError: an arm does not measure ``metric``.
    """
    sets: dict[tuple[str, str, str], list[ArmRow]] = {}
    for row in rows:
        part = row.reports[0]["evaluated"]
        key = (_main(row, metric).name, part, row.reports[0]["data"][part]["hash"])
        sets.setdefault(key, []).append(row)
    known = {(f.first, f.second): f.comparison for f in compared}
    seconds = [f.second for f in compared]
    out: list[ArmTable] = []
    for (_, part, content), members in sets.items():
        reference = max(members, key=lambda r: seconds.count(r.name))
        lines = []
        for row in members:
            c = known.get((row.name, reference.name))
            if c is None and row is not reference:
                c = _against(row, reference, metric)
            lines.append(_line(row, metric, c))
        statistic = _main(reference, metric)
        heading = _heading(statistic, lines[0].figure, reference.reports[0], part)
        if heading in (g.heading for g in out):
            heading += f" (content {content[:8]})"
        out.append(ArmTable(heading, statistic, tuple(lines), reference.label))
    return tuple(out)


def tables(title: str, grouped: Sequence[ArmTable], compared: Sequence[PairVerdict]) -> tuple[RenderableType, ...]:
    """Return tables for a terminal of 80 columns: one for each set that arms were measured on, then verdicts and
    samples.
    """
    body: list[RenderableType] = [Text(title, style="bold")] if title else []
    for group in grouped:
        body += [Text(f"\n{group.heading}"), _terminal(group)]
        body += [Text(f"{name}: {sentence}", style="yellow") for name, sentence in told(group)]
    body += [Text(f"- {_sentence(f)}") for f in compared]
    for line in (line for group in grouped for line in group.lines):
        samples = line.row.reports[0].get("samples") or []
        if samples:
            prompt, text, _ = samples[0]
            body.append(Text.assemble((f"{line.row.label}: ", "bold"), (prompt, "dim"), text.strip("\n")))
    return tuple(body)


def markdown(title: str, grouped: Sequence[ArmTable], compared: Sequence[PairVerdict]) -> str:
    """Return the same as Markdown, with full figures and every arm's change against the reference."""
    lines = [f"# {_cell(title)}", ""] if title else []
    for group in grouped:
        columns = ["arm", "seeds", "figure", "95 % interval", f"change against {group.reference}", "parameters"]
        columns += ["trained", "MB on disk", "ms / token (fastest to slowest)", "training s"]
        lines.append(f"**{_cell(group.heading)}**")
        spent = costs([(line.row.label, line.row.reports) for line in group.lines])
        for heading, *rows in ([columns, *map(_full, group.lines)], others(group), spent):
            if len(heading) > 1:
                lines += ["", _piped(heading), "|---|" + "---:|" * (len(heading) - 1), *map(_piped, rows)]
        lines += ["", *(f"- {_cell(f'{name}: {sentence}')}" for name, sentence in told(group))]
        lines += [""] if told(group) else []
    lines += [f"- {_cell(_sentence(f))}" for f in compared]
    return "\n".join(lines).rstrip("\n") + "\n"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def others(group: ArmTable) -> list[list[str]]:
    """Return every figure but the table's own, with its interval: a heading, then a row an arm."""
    names = dict.fromkeys(s.name for line in group.lines for s in line.row.statistics if s.name != group.statistic.name)
    known = {s.name: s for line in group.lines for s in line.row.statistics}
    out = [["arm", *(f"{name} ({known[name].better} is better)" for name in names)]]
    for line in group.lines:
        own = {s.name: interval(list(line.row.scores), s) for s in line.row.statistics if s.name in names}
        cells = [f"{rounded(f.value, f.low, f.high)} {span(f)}" if (f := own.get(name)) else "-" for name in names]
        out.append([line.row.label, *cells])
    rates = [_rates(line.row) for line in group.lines]
    if any(rates):
        out[0].append("tokens/s when generating (slowest to fastest)")
        for row, found in zip(out[1:], rates, strict=True):
            low, high = (min(found), max(found)) if found else (0.0, 0.0)
            row.append(f"{averages.median(found):,.0f} ({low:,.0f} to {high:,.0f})" if found else "-")
    return out


def _rates(row: ArmRow) -> list[float]:
    """Tokens a second that each seed's evaluation generated, with its own batch and decoding."""
    made = [((r.get("notes") or {}).get("generation") or {}).get("tokens_per_second") for r in row.reports]
    return [rate for rate in made if rate is not None]


def figure(row: ArmRow, name: str) -> Interval | None:
    """Return a figure of an arm by its name, with its interval; None where the arm does not measure it."""
    found = next((s for s in row.statistics if s.name == name), None)
    return None if found is None else interval(list(row.scores), found)


def told(group: ArmTable) -> list[tuple[str, str]]:
    """Return what must stand beside the figures, such as a histogram of classes: (arm, sentence), each once."""
    out = [
        (ln.row.label, s) for ln in group.lines for r in ln.row.reports for s in (r.get("notes") or {}).get("told", [])
    ]
    return list(dict.fromkeys(out))


def rounded(value: float, low: float, high: float) -> str:
    """Return ``value`` with the digits that the interval's width leaves any meaning: two of the width's own."""
    width = high - low
    if not math.isfinite(width) or width <= 0:
        return f"{value:.4g}"
    return f"{value:.{min(8, max(0, 1 - math.floor(math.log10(width))))}f}"


def span(of: Interval | Comparison) -> str:
    """Return its interval, ``[0.856, 0.886]``; one item leaves everything open."""
    return f"[{rounded(of.low, of.low, of.high)}, {rounded(of.high, of.low, of.high)}]"


def change(of: Comparison) -> tuple[str, str]:
    """Return the difference to the reference arm and its interval, ``-0.0074`` and ``[-0.0089, -0.0059]``."""
    return f"{'+' if of.difference >= 0 else ''}{rounded(of.difference, of.low, of.high)}", span(of)


def short(number: int) -> str:
    """Return a count in three or four digits: ``960``, ``74.0 k``, ``0.79 M``, ``124.4 M``, ``1.54 B``."""
    for size, unit, least in ((1e9, "B", 1e9), (1e6, "M", 1e5), (1e3, "k", 1e3)):
        if number >= least:
            return f"{number / size:.{2 if number < 10 * size else 1}f} {unit}"
    return str(number)


def _main(row: ArmRow, metric: str | None) -> Statistic:
    if metric is None:
        return row.statistics[0]
    known = {s.name: s for s in row.statistics}
    if metric not in known:
        raise ConfigError(
            f"arm '{row.name}' does not measure '{metric}', only {', '.join(known)}{nearest(metric, known)}"
        )
    return known[metric]


def _against(row: ArmRow, reference: ArmRow, metric: str | None) -> Comparison:
    """``row - reference``; run i of both started alike, where there are as many."""
    seeds: Seeds = "paired" if len(row.scores) == len(reference.scores) else "independent"
    return compare(list(reference.scores), list(row.scores), _main(row, metric), seeds=seeds)


def _line(row: ArmRow, metric: str | None, against: Comparison | None) -> Line:
    cost = row.reports[0].get("cost") or {}
    speeds = [r["cost"]["speed"] for r in row.reports if (r.get("cost") or {}).get("speed")]
    seconds = [r["training"]["seconds"] for r in row.reports if r.get("training")]
    ms = None
    if speeds:
        middle = averages.median(s["decode_ms_per_token"] for s in speeds)
        ms = Spread(middle, min(s["decode_ms_fastest"] for s in speeds), max(s["decode_ms_slowest"] for s in speeds))
    return Line(
        row=row,
        figure=interval(list(row.scores), _main(row, metric)),
        parameters=cost.get("parameters"),
        trained=cost.get("trainable") if seconds else None,
        disk_bytes=cost.get("disk_bytes"),
        ms_per_token=ms,
        seconds=Spread(averages.mean(seconds), min(seconds), max(seconds)) if seconds else None,
        change=against,
    )


def _heading(statistic: Statistic, figure: Interval, report: Mapping[str, Any], part: str) -> str:
    data = report["data"][part]
    of = "" if data["rows"] == figure.items else f" of {data['rows']} rows"
    source = Path(data["source"]).name
    return f"{statistic.name} ({statistic.better} is better) on {figure.items} {part} items{of}, {source}"


def _terminal(group: ArmTable) -> Table:
    """Compact: the interval stands with its figure, and seeds have a column only where arms differ in them."""
    seeds = [len(line.row.scores) for line in group.lines]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("arm", overflow="fold")
    columns = ["figure [95 %]", "params", "trained", "MB", "ms/tok", "train s"]
    for column in (["seeds"] if len(set(seeds)) > 1 else []) + columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for line in group.lines:
        cells = [
            f"{rounded(line.figure.value, line.figure.low, line.figure.high)} {span(line.figure)}",
            "-" if line.parameters is None else short(line.parameters),
            "-" if line.trained is None else short(line.trained),
            _number(None if line.disk_bytes is None else line.disk_bytes / 1e6, 2),
            _number(_middle(line.ms_per_token), 2),
            _number(_middle(line.seconds), 0),
        ]
        if len(set(seeds)) > 1:
            cells.insert(0, str(len(line.row.scores)))
        table.add_row(Text(line.row.label), *map(Text, cells))
    if len(set(seeds)) == 1:
        table.caption = Text(f"{seeds[0]} seed{'' if seeds[0] == 1 else 's'} an arm; MB on disk")
        table.caption_justify = "left"
    return table


def _full(line: Line) -> list[str]:
    ms = line.ms_per_token
    return [
        line.row.label,
        str(len(line.row.scores)),
        rounded(line.figure.value, line.figure.low, line.figure.high),
        span(line.figure),
        "reference" if line.change is None else " ".join(change(line.change)),
        "-" if line.parameters is None else f"{line.parameters:,}",
        "-" if line.trained is None else f"{line.trained:,}",
        _number(None if line.disk_bytes is None else line.disk_bytes / 1e6, 2),
        "-" if ms is None else f"{ms.middle:.2f} ({ms.low:.2f} to {ms.high:.2f})",
        _number(_middle(line.seconds), 0),
    ]


def _middle(of: Spread | None) -> float | None:
    return None if of is None else of.middle


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits if abs(value) < 100 else 0}f}"


def _sentence(finding: PairVerdict) -> str:
    first, second = finding.labels
    return f"{first} against {second}: {finding.words}"


def _cell(text: str) -> str:
    """Text that Markdown neither takes for a cell's end nor for HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
