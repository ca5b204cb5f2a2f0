"""A study as one HTML file that needs nothing else: answer, tables, charts, samples, alarms, provenance."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.run import Run
from limbeck.study.advice import by_kind
from limbeck.study.charts import COLOURS, Chart, Curve, cost_charts, curve_chart, figure_chart, number
from limbeck.study.costs import costs
from limbeck.study.stages import Table
from limbeck.study.svg import draw
from limbeck.study.table import ArmRow, ArmTable, Line, PairVerdict, change, others, rounded, short, span, told

__all__ = ["page", "protocol"]

_HERE = Path(__file__).parent
_SIGNS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "star": "★"}
_TRAINING = (
    ("train/loss", "Each arm's own objective: losses of different objectives cannot be compared. One line a run."),
    ("valid/", "Measured on the validation rows while training, without interval. One line a run."),
)


def page(
    title: str,
    grouped: Sequence[ArmTable],
    compared: Sequence[PairVerdict],
    arms: Sequence[ArmRow],
    plots: Sequence[tuple[str, str]] = (),
    stages: Sequence[Table] = (),
    answers: Sequence[str] = (),
) -> str:
    """Render the page.

    Args:
        title: of the study.
        grouped: tables, as ``table.groups`` gives them.
        compared: comparisons with their verdicts.
        arms: every arm that ran, those without a table too: for alarms and provenance.
        plots: further charts, of two figures each, by their names.
        stages: further tables: stages, front, knobs, quiet failures.
        answers: sentences that come first: which arm is best, how large it is, what was lost.

    Returns:
        The whole file: charts are SVG, nothing is fetched, and its content security policy admits only its own script,
        so that no text of a model can run.
    """
    # a third of a second to import: only who draws a page pays
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    numbers = {row.name: i for i, row in enumerate(arms, start=1)}
    sections = [_section(group, numbers, plots) for group in grouped]
    figures: list[dict[str, Any]] = []
    for section in sections:
        for chart in section["charts"]:
            chart["place"] = len(figures)
            drawn = draw(chart["figure"], f"{chart['title']}. {chart['summary']}")  # escapes every text it is given
            chart["svg"] = Markup(drawn)  # noqa: S704 # nosec B704
            figures.append(chart["figure"])
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    fired, passed = by_kind([(row.label, [a for r in row.reports for a in r.get("alarms") or []]) for row in arms])
    return environment.get_template("page.html").render(
        title=title or "Study",
        lede=_lede(grouped, arms),
        answers=answers,
        one_seed=max((len(line.row.scores) for g in grouped for line in g.lines), default=0) == 1,
        verdicts=[_verdict(f, grouped) for f in compared],
        sections=sections,
        stages=stages,
        alarms=fired,
        passed=passed,
        provenance=_provenance(arms, numbers),
        script=(_HERE / "page.js").read_text(encoding="utf-8").strip(),
        figures=_for_script(figures),
        keys={i: {"sign": _SIGNS[str(number(i)["symbol"])], **number(i)} for i in numbers.values()},
        colours=COLOURS,
    )


def protocol(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what a report's figures rest on, as text; figures beside it are left to the table with its intervals."""
    values = report.get("protocol") or {}
    if isinstance(values.get("protocol"), Mapping):
        values = {"tokenisation": values.get("tokenisation", ""), **values["protocol"]}
    # blanks at an end would not be seen: such text is quoted
    plain = {k: isinstance(v, str) and v == v.strip() for k, v in values.items()}
    return {k: v if plain[k] else json.dumps(v, ensure_ascii=False) for k, v in values.items()}


def _for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _lede(grouped: Sequence[ArmTable], arms: Sequence[ArmRow]) -> str:
    seeds = sorted({len(line.row.scores) for g in grouped for line in g.lines})
    runs = sum(len(row.reports) for row in arms)
    said = f"{_counted(len(arms), 'arm')}, {_counted(runs, 'run')}"
    if seeds:
        said += f", {' or '.join(_counted(n, 'seed') for n in seeds)} an arm"
    return said + ". Every figure stands with its 95 % interval and the number of items it was measured on."


def _verdict(finding: PairVerdict, grouped: Sequence[ArmTable]) -> dict[str, Any]:
    lines = {line.row.name: line for group in grouped for line in group.lines}
    first, second = lines.get(finding.first), lines.get(finding.second)
    c = finding.comparison
    alone = c.p <= 1 - c.level  # what a test of this pair alone would have shown
    state = "shown" if c.shown else "not shown after Holm" if alone else "not shown"
    return {
        "names": finding.labels,
        "words": finding.words,
        "state": state,
        "costs": _costs(first, second) if first is not None and second is not None else [],
    }


def _costs(first: Line, second: Line) -> list[str]:
    """Return what the first arm costs beside the second."""
    out = []
    if first.disk_bytes is not None and second.disk_bytes is not None:
        a, b = first.disk_bytes / 1e6, second.disk_bytes / 1e6
        out.append(f"{_fixed(a)} against {_fixed(b)} MB on disk{_share(a, b)}")
    one, other = first.ms_per_token, second.ms_per_token
    if one is not None and other is not None:
        spreads = [f"{_fixed(s.middle)} ({_fixed(s.low)} to {_fixed(s.high)})" for s in (one, other)]
        apart = one.high < other.low or other.high < one.low
        effect = _share(one.middle, other.middle) if apart else ", ranges overlap: no difference shown"
        out.append(f"{spreads[0]} against {spreads[1]} ms a token{effect}")
    return out


def _share(a: float, b: float) -> str:
    if not b or round(100 * a / b) == 100:
        return ""
    return f", {abs(100 * (1 - a / b)):.0f} % {'less' if a < b else 'more'}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _fixed(value: float) -> str:
    return f"{value:,.{2 if value < 100 else 0}f}"


def _section(group: ArmTable, numbers: Mapping[str, int], plots: Sequence[tuple[str, str]]) -> dict[str, Any]:
    pairs = [c for plot in plots if (c := figure_chart(group, numbers, *plot)) is not None]
    protocols = [(numbers[line.row.name], line.row.label, protocol(line.row.reports[0])) for line in group.lines]
    keys = list(dict.fromkeys(k for _, _, p in protocols for k in p))
    shared = {k: protocols[0][2].get(k) for k in keys if len({p.get(k) for _, _, p in protocols}) == 1}
    return {
        "heading": group.heading,
        "statistic": group.statistic,
        "reference": group.reference,
        "lines": [_cells(line, numbers, group) for line in group.lines],
        "told": told(group),
        "others": others(group),
        "spent": costs([(line.row.label, line.row.reports) for line in group.lines]),
        "charts": [asdict(c) for c in (*pairs, *cost_charts(group, numbers), *_curves(group, numbers))],
        "samples": _samples(group, numbers),
        "protocol": shared,
        "differing": {k: [(n, p.get(k, "-")) for n, _, p in protocols] for k in keys if k not in shared},
    }


def _cells(line: Line, numbers: Mapping[str, int], group: ArmTable) -> dict[str, Any]:
    f, ms, seconds = line.figure, line.ms_per_token, line.seconds
    effect = ""
    if line.change is not None:
        effect = {"b": "better", "a": "worse", None: "not shown"}[line.change.better]
    spread = seconds is not None and len(line.row.reports) > 1
    return {
        "number": numbers[line.row.name],
        "label": line.row.label,
        "figure": rounded(f.value, f.low, f.high),
        "span": span(f),
        "measured_on": f"{f.items:,}",
        "seeds": _counted(f.seeds, "seed"),
        "change": () if line.change is None else change(line.change),
        "effect": effect,
        "parameters": "-" if line.parameters is None else short(line.parameters),
        "trained": "-" if line.trained is None else short(line.trained),
        "disk": "-" if line.disk_bytes is None else _fixed(line.disk_bytes / 1e6),
        "ms": "-" if ms is None else _fixed(ms.middle),
        "ms_span": "" if ms is None else f"{_fixed(ms.low)} to {_fixed(ms.high)}",
        "seconds": "-" if seconds is None else f"{seconds.middle:,.0f}",
        "seconds_span": f"{seconds.low:,.0f} to {seconds.high:,.0f}" if seconds is not None and spread else "",
    }


def _curves(group: ArmTable, numbers: Mapping[str, int]) -> list[Chart]:
    """Training loss, and every metric that was measured on validation rows."""
    found: dict[str, list[Curve]] = {}
    for line in group.lines:
        for run, report in enumerate(line.row.reports, start=1):
            logged = Run(Path(report["run"])).metrics() if report.get("run") else []
            for name in dict.fromkeys(k for entry in logged for k in entry):
                if any(name.startswith(prefix) for prefix, _ in _TRAINING):
                    points = [(e["step"], e[name]) for e in logged if name in e]
                    steps, values = zip(*points, strict=True)
                    curve = Curve(numbers[line.row.name], line.row.label, run, steps, values)
                    found.setdefault(name, []).append(curve)
    return [
        curve_chart(name, found[name], remark)
        for prefix, remark in _TRAINING
        for name in found
        if name.startswith(prefix)
    ]


def _samples(group: ArmTable, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what each arm made of the same prompts, prompt by prompt."""
    out: dict[str, dict[str, Any]] = {}
    for line in group.lines:
        for prompt, text, reference in line.row.reports[0].get("samples") or []:
            one = out.setdefault(prompt, {"prompt": prompt, "reference": reference, "texts": []})
            one["texts"].append((numbers[line.row.name], line.row.label, text.strip("\n")))
    return list(out.values())


def _provenance(arms: Sequence[ArmRow], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Rows of the table of runs, and what is equal for many of them said once."""
    runs: list[dict[str, Any]] = []
    hashes: dict[tuple[str, str, int, str], None] = {}
    versions, machines, speeds = [], [], []
    for row in arms:
        for report in row.reports:
            known = _read(Path(report["run"]) / "provenance.json") if report.get("run") else {}
            source = known.get("source") or {}
            commit = (source.get("commit") or "unknown")[:12] + (" and changes" if source.get("changed") else "")
            start = report.get("start") or {}
            runs.append(
                {
                    "number": numbers[row.name],
                    "label": row.label,
                    "verb": report.get("verb", ""),
                    "seed": known.get("seed", "-"),
                    "started": known.get("started", "-").replace("T", " ").replace("+00:00", " UTC"),
                    "commit": commit,
                    "start": start.get("source") or report.get("model", "-"),
                    "training": _training(report.get("training") or {}),
                }
            )
            versions.append(_said(known.get("versions") or {}))
            machines.append(_said(known.get("machine") or {}))
            speed = (report.get("cost") or {}).get("speed") or {}
            speeds.append(
                _said({k: speed[k] for k in ("device", "dtype") if k in speed} | (speed.get("protocol") or {}))
            )
            for part, data in (report.get("data") or {}).items():
                if "hash" in data:
                    hashes[(data["source"], part, data["rows"], data["hash"])] = None
    said = {"versions": versions, "machine": machines, "speed measured with": speeds}
    return {
        "runs": runs,
        "facts": {name: [t for t in dict.fromkeys(texts) if t] for name, texts in said.items()},
        "data": [dict(zip(("source", "part", "rows", "hash"), key, strict=True)) for key in hashes],
    }


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return "-"
    return f"{training['steps']} steps, {training['real_tokens']:,} tokens, {training['precision']}"


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())


def _read(file: Path) -> dict[str, Any]:
    """Return a run's provenance; a run that was moved away or damaged says nothing, which the page shows as such."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
