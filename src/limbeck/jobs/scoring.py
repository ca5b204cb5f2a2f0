"""Scores of a predictions file against the truth, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from limbeck.data.readers import Rows
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import show_report, told
from limbeck.jobs.source import NamedRows, Reading
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.tasks.table import AnyTask

__all__ = ["ScoringOptions", "scoring"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_PART = "all"


class ScoringOptions(Reading, NamedRows, Recipe):
    """A predictions file, its rows and its task."""

    data: str = Field(description="rows that were predicted: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)
    predictions: str = Field(description="the file", json_schema_extra={"positional": True})
    task: AnyTask = Field(description="kind of work")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")


def scoring(options: ScoringOptions, display: Display) -> Report:
    """Read, pair, score, report.

    Raises:
        DataError: the data or the file cannot be read, or the file is of another split.
        ConfigError: the task makes no predictions.
    """
    rows = options.rows(options.data, options.task)
    values: dict[str, Any] = {
        "verb": options.verb,
        "predictions": options.predictions,
        "data": {_PART: rows.describe()},
    }
    if options.out is None:
        return _scored(options, values, rows, None)
    with Run.create(Path(options.out), options) as run:
        if run.finished:
            display.say(run.describe())
            return Report(run.report(), show_report(run.report()))
        run.provenance(seed=options.seed, data={_PART: rows.hash})
        report = _scored(options, {**values, "run": str(run.path)}, rows, run.scores / f"{_PART}.jsonl")
        run.finish(report.values)
        return report


def _scored(options: ScoringOptions, values: dict[str, Any], rows: Rows, scores: Path | None) -> Report:
    predictions = options.task.read_predictions(Path(options.predictions), rows)
    found = options.task.score(predictions, rows)
    values = plain(values | told(found, options.task, _PART, options.level, scores))
    return Report(values, show_report(values))
