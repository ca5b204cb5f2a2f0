"""Everything a user may choose about a training: the fields of every verb that trains."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from limbeck.config import dump
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.recipes.checks import OnOverlap, ProbeLevel
from limbeck.recipes.parts import DataSource
from limbeck.recipes.recipe import Recipe
from limbeck.tasks.table import AnyTask
from limbeck.tasks.task import Measuring
from limbeck.tasks.text import Text
from limbeck.techniques.table import AnyTechnique
from limbeck.train.settings import TrainSettings

__all__ = ["Choices"]

_DATA: dict[str, JsonValue] = {"section": "data"}


class Choices(DataSource, Recipe):
    """Task, batches, techniques, training and measuring; what is read off them alone."""

    task: AnyTask = Field(Text(), description="kind of work")
    context: int | None = Field(
        None, ge=2, description="tokens a sequence; none: the model's own", json_schema_extra=_DATA
    )
    batch_size: int = Field(8, ge=1, description="sequences (packed: rows) a micro-batch", json_schema_extra=_DATA)
    packing: bool = Field(False, description="fill rows with several whole documents", json_schema_extra=_DATA)
    bucketing: bool = Field(True, description="batch rows of like length together", json_schema_extra=_DATA)
    techniques: tuple[AnyTechnique, ...] = Field((), description="applied in this order")
    train: TrainSettings = Field(default_factory=TrainSettings, description="the training itself")
    measuring: Measuring = Field(default_factory=Measuring, description="the final evaluation")
    decoding: Decoding | None = Field(None, description="how the final evaluation generates; none: the task's choice")
    audit: OnOverlap = Field(
        "list",
        description="training rows that overlap with evaluation rows or repeat: list them, drop them, refuse to run",
        json_schema_extra=_DATA,
    )
    probes: ProbeLevel = Field("quick", description="what is measured beside the task, and rings alarms")
    general: str | None = Field(
        None, description="held-out general text, on which lost generality is measured too", json_schema_extra=_DATA
    )
    zero_shot: str | None = Field(
        None,
        description="rows of a task that is not trained, on which lost generality is measured too; none: toy rows",
        json_schema_extra=_DATA,
    )
    zero_shot_task: Literal["auto", "paraphrase", "sst2"] = Field(
        "auto",
        description="their task; auto: paraphrase, or sst2 where paraphrase is trained",
        json_schema_extra=_DATA,
    )
    dry_run: bool = Field(
        False, description="show tokenised examples, memory and time, and stop", json_schema_extra={"section": "common"}
    )

    def settings(self, monitored: bool) -> TrainSettings:
        """Settings of the loop: ``dtype`` names the precision; without validation rows there is nothing to monitor.

        Raises:
            ConfigError: training in fp16 was asked for, or patience without validation rows.
        """
        changes: dict[str, Any] = {}
        if self.dtype == "fp16":
            raise ConfigError("training in fp16 is not supported, as its gradients underflow: use bf16, fp32 or auto")
        if self.dtype != "auto":
            changes["precision"] = self.dtype
        if not monitored:
            if self.train.patience:
                raise ConfigError("patience needs validation rows: give 'valid', or a validation share in 'fractions'")
            changes["monitor"] = ""
        return self.train.model_copy(update=changes)

    @property
    def folder(self) -> Path:
        """Run folder: ``out``, or one named after the recipe, so that the same command finds its own run again."""
        if self.out is not None:
            return Path(self.out)
        return Path("runs") / f"{self.verb}-{hashlib.sha256(dump(self).encode()).hexdigest()[:8]}"
