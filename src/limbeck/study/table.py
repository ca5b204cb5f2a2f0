"""A study's table: figures with intervals, costs, and verdicts, for the terminal and as Markdown."""

from __future__ import annotations

import statistics as averages
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.errors import ConfigError, nearest
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.measure.stats import Comparison, compare, holm, interval, verdict

__all__ = ["Finding", "Row", "findings", "markdown", "tables"]

_COLUMNS = (
    "arm",
    "seeds",
    "figure",
    "95 % interval",
    "parameters",
    "trained",
    "MB on disk",
    "ms / token",
    "training s",
)


class Row(Protocol):
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
class Finding:
    """One comparison, with its words and its p among all of them (Holm)."""

    first: str
    second: str
    comparison: Comparison
    words: str
    p_adjusted: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "first": self.first,
            "second": self.second,
            **self.comparison.to_json(),
            "p_holm": self.p_adjusted,
            "verdict": self.words,
        }


def findings(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], metric: str | None) -> list[Finding]:
    """Compare arms pairwise on the items they share, every pair's p adjusted for their number."""
    by_name = {r.name: r for r in rows}
    compared: list[tuple[str, str, Comparison, str]] = []
    for first, second in pairs:
        a, b = by_name[second], by_name[first]
        paired = len(a.scores) == len(b.scores)
        c = compare(list(a.scores), list(b.scores), _main(b, metric), seeds="paired" if paired else "independent")
        compared.append((first, second, c, verdict(c, (a.label, b.label))))
    adjusted = holm({f"{i}": c[2].p for i, c in enumerate(compared)})
    return [Finding(f, s, c, w, adjusted[f"{i}"]) for i, (f, s, c, w) in enumerate(compared)]


def tables(
    title: str, rows: Sequence[Row], compared: Sequence[Finding], metric: str | None
) -> tuple[RenderableType, ...]:
    """Tables for the terminal: one for each set that arms were measured on, then the verdicts and samples."""
    body: list[RenderableType] = [Text(title, style="bold")] if title else []
    for heading, members in _groups(rows, metric).items():
        table = Table(title=heading, title_justify="left")
        for i, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if i else "left")
        for row in members:
            table.add_row(*_cells(row, metric))
        body.append(table)
    body += [Text(f"- {f.words}; p = {f.p_adjusted:.2g} after Holm over {len(compared)}") for f in compared]
    for row in rows:
        samples = row.reports[0].get("samples") or []
        if samples:
            prompt, text, _ = samples[0]
            body.append(Text.assemble((f"{row.label}: ", "bold"), (prompt, "dim"), text.strip("\n")))
    return tuple(body)


def markdown(title: str, rows: Sequence[Row], compared: Sequence[Finding], metric: str | None) -> str:
    """The same as Markdown."""
    lines = [f"# {title}", ""] if title else []
    for heading, members in _groups(rows, metric).items():
        lines += [f"**{heading}**", "", "| " + " | ".join(_COLUMNS) + " |"]
        lines.append("|" + "|".join("---:" if i else "---" for i in range(len(_COLUMNS))) + "|")
        lines += ["| " + " | ".join(_cells(row, metric)) + " |" for row in members]
        lines.append("")
    lines += [f"- {f.words}; p = {f.p_adjusted:.2g} after Holm over {len(compared)}" for f in compared]
    return "\n".join(lines) + "\n"


def _groups(rows: Sequence[Row], metric: str | None) -> dict[str, list[Row]]:
    """Arms measured on the same rows, by a heading that names figure and set: others share no table."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        report = row.reports[0]
        part = report["evaluated"]
        data = report["data"][part]
        figure = _main(row, metric)
        heading = f"{figure.name} ({figure.better} is better) on {data['rows']} {part} rows of {Path(data['source']).name}"
        out.setdefault(heading, []).append(row)
    return out


def _main(row: Row, metric: str | None) -> Statistic:
    if metric is None:
        return row.statistics[0]
    known = {s.name: s for s in row.statistics}
    if metric not in known:
        raise ConfigError(
            f"arm '{row.name}' does not measure '{metric}', only {', '.join(known)}{nearest(metric, known)}"
        )
    return known[metric]


def _cells(row: Row, metric: str | None) -> list[str]:
    figure = interval(list(row.scores), _main(row, metric))
    digits = 3 if abs(figure.value) < 100 else 1
    cost, first = row.reports[0].get("cost") or {}, row.reports[0]
    speeds = [r["cost"]["speed"]["decode_ms_per_token"] for r in row.reports if r.get("cost")]
    seconds = [r["training"]["seconds"] for r in row.reports if r.get("training")]
    trained = cost.get("trainable") if first.get("training") else None
    return [
        row.label,
        str(len(row.scores)),
        f"{figure.value:.{digits}f}",
        f"[{figure.low:.{digits}f}, {figure.high:.{digits}f}]",
        f"{cost['parameters']:,}" if cost else "-",
        f"{trained:,}" if trained is not None else "-",
        f"{cost['disk_bytes'] / 1e6:.2f}" if "disk_bytes" in cost else "-",
        f"{averages.median(speeds):.2f}" if speeds else "-",
        f"{averages.mean(seconds):.0f}" if seconds else "-",
    ]
