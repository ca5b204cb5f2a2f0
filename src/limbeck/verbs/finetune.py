"""``limbeck finetune``: a given model on a task."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from limbeck.jobs.model_source import NAMES
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import rows_in_memory
from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.start import loaded
from limbeck.jobs.training import TrainingJob

__all__ = ["Finetune"]


class Finetune(TrainingOptions):
    """Train a given model further, whole or through techniques such as LoRA."""

    verb: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train a model on a task, whole or through techniques such as LoRA"

    model: str = Field(description=f"model to start from: {NAMES}", json_schema_extra={"section": "model"})
    adapter: str | None = Field(
        None,
        description="PEFT adapter to put beside it, which alone is trained further",
        json_schema_extra={"section": "model"},
    )

    def run(self, session: Display) -> Report:
        """Train, save, measure, report."""
        start = partial(loaded, self.model, self.adapter)
        return TrainingJob(self, start, rows_in_memory(self)).run(session)
