"""``limbeck score``: a predictions file against the truth, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, JsonValue

from limbeck.data.readers import Rows
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import show_report, told
from limbeck.jobs.source import NamedRows, Reading
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.tasks.table import AnyTask

__all__ = ["Score"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_PART = "all"


class Score(Reading, NamedRows, Recipe):
    """Score a predictions file, whoever wrote it: the task's figures with intervals, and per-item scores.

    The file is in the task's published format: ``ID, LABEL`` lines of the CS 224N project for sentiment and paraphrase,
    its numbered poems for sonnets, a JSON object by item id for the rest. With ``out`` it is a run that
    ``compare`` takes.
    """

    retired: ClassVar[Mapping[str, str]] = {"resamples": "intervals are computed without resampling"}
    verb: ClassVar[str] = "score"
    summary: ClassVar[str] = "score a predictions file against the truth, without a model"

    data: str = Field(description="rows that were predicted: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)
    predictions: str = Field(description="the file", json_schema_extra={"positional": True})
    task: AnyTask = Field(description="kind of work")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def run(self, session: Display) -> Report:
        """Read, pair, score, report.

        Raises:
            DataError: the data or the file cannot be read, or the file is of another split.
            ConfigError: the task makes no predictions.
        """
        rows = self.rows(self.data, self.task)
        values: dict[str, Any] = {
            "verb": self.verb,
            "predictions": self.predictions,
            "data": {_PART: rows.describe()},
        }
        if self.out is None:
            return self._scored(values, rows, None)
        with Run.create(Path(self.out), self) as run:
            if run.finished:
                session.say(run.describe())
                return Report(run.report(), show_report(run.report()))
            run.provenance(seed=self.seed, data={_PART: rows.hash})
            report = self._scored({**values, "run": str(run.path)}, rows, run.scores / f"{_PART}.jsonl")
            run.finish(report.values)
            return report

    def _scored(self, values: dict[str, Any], rows: Rows, scores: Path | None) -> Report:
        predictions = self.task.read_predictions(Path(self.predictions), rows)
        found = self.task.score(predictions, rows)
        values = plain(values | told(found, self.task, _PART, self.level, scores))
        return Report(values, show_report(values))
