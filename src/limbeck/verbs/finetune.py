"""``limbeck finetune``: a given model on a task."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.model_source import StartingModel
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import rows_in_memory
from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.training import TrainingJob

__all__ = ["Finetune"]


class Finetune(StartingModel, TrainingOptions):
    """Train a given model further, whole or through techniques such as LoRA."""

    verb: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train a model on a task, whole or through techniques such as LoRA"

    def run(self, session: Display) -> Report:
        """Train, save, measure, report."""
        return TrainingJob(self, self.start, rows_in_memory(self)).run(session)
