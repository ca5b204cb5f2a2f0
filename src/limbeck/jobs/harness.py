"""Measuring on tasks of lm-evaluation-harness: what is asked of it, what it hands back, and the report on it.

Nothing here imports it: ``RUNNER`` names the function that does, as the table of verbs names recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from limbeck.config import Config, build
from limbeck.data.readers import read
from limbeck.errors import ConfigError, DataError
from limbeck.formats.hub import commits_of
from limbeck.formats.load import Bundle
from limbeck.jobs.checks import fired_first
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import show_report
from limbeck.measure.classes import class_statistics
from limbeck.measure.probes.table import score_alarms
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, ratio
from limbeck.measure.stats import interval
from limbeck.run import Run
from limbeck.storage import plain, write_json
from limbeck.tasks.task import Measuring, Result

__all__ = [
    "RUNNER",
    "Asked",
    "HarnessFigure",
    "Found",
    "harness_job",
    "harness_values",
    "reported_figures",
    "reported_protocol",
    "run_harness",
]

RUNNER = "limbeck.integrations.harness:run"
"""``module:function`` that runs lm-eval: ``(Bundle, Asked) -> list[Found]``."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What lm-eval is to do.

    Attributes:
        tasks: names, or paths of YAML files.
        path: folder of further task files.
        data: local files by task name, and by ``NAME_examples``.
        shots: examples shown; None: as each task says.
        chat: put prompts through the model's chat template.
        limit: the first so many items of each task.
        seed: of the examples, and of sampled generations.
        measuring: batch size and context.
        quiet: write nothing for people.
    """

    tasks: tuple[str, ...]
    path: str | None
    data: Mapping[str, str]
    shots: int | None
    chat: bool
    limit: int | None
    seed: int
    measuring: Measuring
    quiet: bool


class HarnessFigure(Config):
    """A figure of a harness task, plain enough for a report to hold and for ``compare`` to build again."""

    name: str
    form: Literal["mean", "exp", "bits", "class"] = Field(
        description="mean of a column, exp of a ratio of two, the ratio in bits, or one of measure.classes"
    )
    columns: tuple[str, ...]
    better: Literal["lower", "higher"] = "higher"
    unit: str = ""

    def statistic(self, scores: Scores) -> Statistic:
        """Return the figure as a statistic of ``scores``.

        Raises:
            DataError: the scores lack its columns.
        """
        lacking = [c for c in self.columns if c not in (*scores.columns, COUNT)]
        if lacking:
            raise DataError(f"the scores have no column '{lacking[0]}', of which '{self.name}' is made")
        if self.form == "class":
            return next(s for s in class_statistics(scores.columns) if s.name == self.name)
        if self.form == "mean":
            return ratio(self.columns[0], COUNT, name=self.name, better=self.better, unit=self.unit)
        rate = ratio(*self.columns)
        log = self.form == "exp"
        scale: Callable[[Any], Any] = np.exp if log else lambda nats: nats / np.log(2)

        def of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(scale(rate.of_sums(sums)))

        return Statistic(self.name, self.columns, of_sums, self.better, self.unit, log=log)


@dataclass(frozen=True, slots=True)
class Found:
    """One task's outcome.

    Attributes:
        name: of the task.
        result: scores, protocol, predictions and samples, as one of the project's own tasks gives them.
        figures: the main one first.
        others: lm-eval's figures that are no sums over items, so that they have no interval.
    """

    name: str
    result: Result
    figures: tuple[HarnessFigure, ...]
    others: Mapping[str, float] = field(default_factory=dict)


def run_harness(bundle: Bundle, asked: Asked) -> list[Found]:
    """Run lm-eval's tasks on a model.

    Raises:
        ConfigError: lm-eval is not installed, or what is asked does not fit.
        DataError: a task's data cannot be had.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("tasks of the harness need lm-eval, which is not installed: pip install 'limbeck[harness]'")
    module, _, name = RUNNER.partition(":")
    run: Callable[[Bundle, Asked], list[Found]] = getattr(import_module(module), name)
    return run(bundle, asked)


def harness_job(recipe: Recipe, source: ModelSource, asked: Asked, display: Display, *, memory: bool) -> Report:
    """Measure a model on tasks of the harness and report; with ``out`` also write a run folder, scores by task.

    Args:
        recipe: of the run folder.
        source: the model.
        asked: of the harness.
        display: for people.
        memory: measure peak memory too.

    Raises:
        LimbeckError: the model or what is asked does not fit, data cannot be had, or the disk refused a write.
    """
    display.say(f"measuring {source.model} on {', '.join(asked.tasks)} through lm-evaluation-harness")
    named = {part: read(rows) for part, rows in asked.data.items()}
    data = {part: rows.describe() for part, rows in named.items()}
    values: dict[str, Any] = {"verb": recipe.verb, "model": source.model, "data": data}

    def report(values: dict[str, Any], scores: Path | None) -> Report:
        bundle = source.load(recipe.dtype, recipe.device)
        values |= harness_values(run_harness(bundle, asked), asked.measuring, scores)
        for name, part in values["parts"].items():  # what lm-eval had from elsewhere
            items = max((m["items"] for m in part["metrics"].values()), default=0)
            values["data"].setdefault(name, {"source": str(part["protocol"].get("corpus")), "hash": "", "rows": items})
        values["cost"] = source.cost(bundle, recipe.dtype, memory)
        values = plain(values)
        return Report(values, show_report(values))

    if recipe.out is None:
        return report(values, None)
    with Run.create(Path(recipe.out), recipe) as run:
        if run.finished:
            display.say(run.describe())
            return Report(run.report(), show_report(run.report()))
        run.provenance(
            seed=recipe.seed,
            data={part: rows.hash for part, rows in named.items()},
            models=commits_of(recipe.model_dump()),
        )
        told = report({**values, "run": str(run.path)}, run.scores)
        run.finish(told.values)
        return told


def harness_values(found: list[Found], measuring: Measuring, folder: Path | None) -> dict[str, Any]:
    """Return intervals, alarms and files of what the harness found, as the part of a report that ``measure`` makes.

    A report on one task is shaped as one on a task of the project's own. One on several has their figures side by
    side, ``TASK: FIGURE``; ``parts`` has each task by itself in both.

    Args:
        found: the tasks.
        measuring: level of the intervals.
        folder: where scores and predictions of each task go, ``TASK.jsonl``; None: nowhere.
    """
    parts = {one.name: _part(one, measuring, folder) for one in found}
    alarms = [{**a, "name": _named(task, a["name"], parts)} for task, p in parts.items() for a in p["alarms"]]
    alone = next(iter(parts.values())) if len(parts) == 1 else None
    return {
        "evaluated": ", ".join(parts),
        "metrics": {_named(task, name, parts): m for task, p in parts.items() for name, m in p["metrics"].items()},
        "protocol": alone["protocol"] if alone else {task: p["protocol"] for task, p in parts.items()},
        "notes": {
            "told": [_named(task, told, parts) for task, p in parts.items() for told in p["notes"]["told"]],
            **{task: p["notes"] for task, p in parts.items()},
        },
        "samples": [sample for p in parts.values() for sample in p["samples"]],
        "alarms": fired_first(alarms),
        "scores": alone["scores"] if alone else None,
        "parts": parts,
    }


def _named(task: str, name: str, parts: Mapping[str, Any]) -> str:
    return name if len(parts) == 1 else f"{task}: {name}"


def _part(one: Found, measuring: Measuring, folder: Path | None) -> dict[str, Any]:
    scores, metrics = one.result.scores, {}
    for figure in one.figures:
        value = interval(scores, figure.statistic(scores), level=measuring.level)
        metrics[figure.name] = {
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "level": value.level,
            "unit": figure.unit,
            "better": figure.better,
            "items": value.items,
            "caution": value.caution,
            "figure": figure.model_dump(mode="json"),
        }
    file = None if folder is None else folder / f"{one.name}.jsonl"
    if file is not None:
        scores.write(file)
        if one.result.predictions:
            write_json(file.with_suffix(".predictions.json"), dict(one.result.predictions))
    told = [f"{name} is {v:.4g}, without an interval: it is no sum over items" for name, v in one.others.items()]
    return {
        "metrics": metrics,
        "without_interval": dict(one.others),
        "protocol": dict(one.result.protocol),
        "notes": {**one.result.notes, "told": [*one.result.notes.get("told", ()), *told]},
        "samples": [list(sample) for sample in one.result.samples],
        "alarms": [alarm.describe() for alarm in score_alarms(scores)],
        "scores": None if file is None else str(file),
    }


def reported_figures(report: Mapping[str, Any], part: str, scores: Scores) -> tuple[Statistic, ...] | None:
    """Return the figures of one task of a harness's report, built again for ``scores``; None: it is no such report."""
    if part not in report.get("parts", {}):
        return None
    described = report["parts"][part]["metrics"].values()
    return tuple(build(HarnessFigure, m["figure"], "the report").statistic(scores) for m in described)


def reported_protocol(report: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return what the figures of ``part`` rest on; empty where the report is about another part."""
    if part in report.get("parts", {}):
        found: Mapping[str, Any] = report["parts"][part]["protocol"]
        return found
    return report.get("protocol", {}) if report.get("evaluated") == part else {}
