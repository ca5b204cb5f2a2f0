"""Measuring a finished model for a report: the task's figures, what it costs, and both for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.data.readers import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.jobs.checks import fired_first, show_alarms
from limbeck.jobs.recipe import facts
from limbeck.jobs.reports.ending import next_steps, size_sentence
from limbeck.jobs.reports.limits import clamped, cut_alarms, cuts
from limbeck.measure.probes.table import score_alarms
from limbeck.measure.stats import interval
from limbeck.model.decoder import Decoder
from limbeck.storage import write_json
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["measure", "show_report", "told"]


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    rows: Rows,
    part: str,
    measuring: Measuring,
    decoding: Decoding | None,
    scores_file: Path | None,
    predictions_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate ``model`` and write its per-item scores (and predictions beside them).

    ``predictions_file`` receives the predictions too, in the task's published format.

    Returns:
        ``evaluated``, ``metrics`` (name -> value, interval, unit, better, items), ``protocol``, ``notes``, ``samples``,
        ``alarms`` that the scores tell, and ``scores``, the file they were written to.
    """
    task.check(model)
    found = task.evaluate(model, tokenizer, rows, measuring, decoding or task.decoding())
    if predictions_file is not None:
        task.write_predictions(found, predictions_file)
    values = told(found, task, part, measuring.level, scores_file)
    lowered = clamped(measuring.context, found.protocol.get("context"), "the evaluation")
    values["notes"]["told"] = [*(values["notes"].get("told") or ()), *lowered]
    return values


def told(found: Result, task: Task, part: str, level: float, scores_file: Path | None) -> dict[str, Any]:
    """Return what an evaluation found as plain values (see ``measure``), its scores and predictions written."""
    metrics: dict[str, Any] = {}
    for statistic in task.statistics(found.scores.columns):
        figure = interval(found.scores, statistic, level=level)
        metrics[statistic.name] = {
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "level": figure.level,
            "unit": statistic.unit,
            "better": statistic.better,
            "items": figure.items,
            "caution": figure.caution,
        }
    alarms = [*cut_alarms(found.notes, len(found.scores)), *score_alarms(found.scores)]
    if scores_file is not None:
        found.scores.write(scores_file)
        if found.predictions:
            write_json(scores_file.with_suffix(".predictions.json"), dict(found.predictions))
    return {
        "evaluated": part,
        "metrics": metrics,
        "protocol": {**found.protocol, **cuts(found.notes)},
        "notes": dict(found.notes),
        "samples": [list(s) for s in found.samples],
        "alarms": fired_first([alarm.describe() for alarm in alarms]),
        "scores": None if scores_file is None else str(scores_file),
    }


def show_report(values: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    """Return a report for people: figures with intervals, cost, training, samples."""
    body: list[RenderableType] = []
    metrics = values.get("metrics") or {}
    if metrics:
        table = Table(title=f"measured on {values['evaluated']}", title_justify="left")
        for name in ("figure", "value", "interval", "unit", "items"):
            table.add_column(name, justify="left" if name in ("figure", "unit") else "right")
        for name, m in metrics.items():
            span = f"[{_number(m['low'])}, {_number(m['high'])}]"
            table.add_row(name, _number(m["value"]), span, m["unit"], str(m["items"]))
        body.append(table)
        cautions = {name: m.get("caution") for name, m in metrics.items()}
        for caution in dict.fromkeys(filter(None, cautions.values())):
            named = ", ".join(name for name, own in cautions.items() if own == caution)
            body.append(Text(f"{caution}: {named}", style="yellow"))
    body += [Text(sentence, style="yellow") for sentence in (values.get("notes") or {}).get("told") or []]
    body += show_alarms(values.get("alarms") or [])
    training = _training(values.get("training") or {})
    spent = [*_cost(values.get("cost") or {}, training, values.get("base")), *training]
    if spent:
        body.append(facts("cost and training" if training else "cost", spent))
    for prompt, text, reference in values.get("samples") or []:
        body.append(
            Text.assemble((prompt, "dim"), text, (f"\n    reference: {reference}" if reference else "", "green"))
        )
    if values.get("run"):
        body.append(Text(f"run folder: {values['run']}", style="dim"))
        body += next_steps(values.get("verb", ""), values["run"])
    return tuple(body)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _cost(
    cost: Mapping[str, Any], training: list[tuple[str, object]], base: Mapping[str, Any] | None
) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if "parameters" in cost:
        share = f", trained {cost['trainable']:,}" if training and "trainable" in cost else ""
        rows.append(("parameters", f"{cost['parameters']:,}{share}"))
    if "disk_bytes" in cost:
        size = f"{cost['disk_bytes'] / 1e6:.2f} MB" if base is None else size_sentence(cost["disk_bytes"], base)
        rows.append(("weights on disk", size))
    if cost.get("peak"):
        load, use = (cost["peak"][k] / 1e6 for k in ("load_bytes", "use_bytes"))
        rows.append(("peak memory", f"{load:.1f} MB at load, {use:.1f} MB in use"))
    if "speed" in cost:
        s = cost["speed"]
        rows.append(("decode", f"{s['decode_ms_per_token']:.2f} ms a token"))
    return rows


def _training(training: Mapping[str, Any]) -> list[tuple[str, object]]:
    if "steps" not in training:
        return []
    t = training
    return [
        ("steps", f"{t['steps']} ({t['stopped']}), weights of step {t['weights_step']}"),
        ("tokens", f"{t['real_tokens']:,} at {t['tokens_per_second']:,.0f} a second, {t['precision']}"),
        ("training time", f"{t['seconds']:.1f} s"),
    ]
