"""``limbeck score``: a predictions file against the truth, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.scoring import ScoringOptions, scoring

__all__ = ["Score"]


class Score(ScoringOptions):
    """Score a predictions file, whoever wrote it: the task's figures with intervals, and per-item scores.

    The file is in the task's published format: ``ID, LABEL`` lines of the CS 224N project for sentiment and paraphrase,
    its numbered poems for sonnets, a JSON object by item id for the rest. With ``out`` it is a run that
    ``compare`` takes.
    """

    retired: ClassVar[Mapping[str, str]] = {"resamples": "intervals are computed without resampling"}
    verb: ClassVar[str] = "score"
    summary: ClassVar[str] = "score a predictions file against the truth, without a model"

    def run(self, session: Display) -> Report:
        """Read, pair, score, report."""
        return scoring(self, session)
