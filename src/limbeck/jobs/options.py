"""Everything a user may choose about a training: the fields of every verb that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, JsonValue, field_validator

from limbeck.data.batch import Example
from limbeck.data.batches import Batches, CollateFn
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError
from limbeck.jobs.checks import OnOverlap, ProbeLevel, encoded
from limbeck.jobs.measured_task import MeasuredTask
from limbeck.jobs.recipe import Recipe, default_folder
from limbeck.jobs.source import DataSource
from limbeck.jobs.zero_shot import ZeroShotRows
from limbeck.run import Run
from limbeck.tasks.text import Text
from limbeck.techniques.pairs import check_pairs
from limbeck.techniques.table import AnyTechnique
from limbeck.train.settings import TrainSettings

__all__ = ["TrainingOptions"]

_DATA: dict[str, JsonValue] = {"section": "data"}


class TrainingOptions(MeasuredTask, ZeroShotRows, DataSource, Recipe):
    """Task, batches, techniques, training and measuring; what is read off them alone."""

    on_ranks: ClassVar[bool] = True

    context: int | None = Field(
        None, ge=2, description="tokens a sequence; none: the model's own", json_schema_extra=_DATA
    )
    batch_size: int = Field(8, ge=1, description="sequences (packed: rows) a micro-batch", json_schema_extra=_DATA)
    packing: bool = Field(False, description="fill rows with several whole documents", json_schema_extra=_DATA)
    bucketing: bool = Field(True, description="batch rows of like length together", json_schema_extra=_DATA)
    techniques: tuple[AnyTechnique, ...] = Field((), description="applied in this order")
    train: TrainSettings = Field(default_factory=TrainSettings, description="the training itself")
    audit: OnOverlap = Field(
        "list",
        description="training rows that overlap with evaluation rows or repeat: list them, drop them, refuse to run",
        json_schema_extra=_DATA,
    )
    probes: ProbeLevel = Field("quick", description="further measurements, and the alarms that they give")
    general: str | None = Field(
        None, description="held-out general text, on which lost generality is measured too", json_schema_extra=_DATA
    )
    dry_run: bool = Field(
        False, description="show tokenised examples, memory and time, and stop", json_schema_extra={"section": "common"}
    )

    @field_validator("techniques")
    @classmethod
    def _compose(cls, techniques: tuple[AnyTechnique, ...]) -> tuple[AnyTechnique, ...]:
        check_pairs(techniques)
        return techniques

    def settings(self, monitored: bool) -> TrainSettings:
        """Return settings of the loop: ``dtype`` names the precision; without validation rows there is nothing to
        monitor.

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

    def shuffled(self, examples: Sequence[Example], pad_id: int, context: int, collate_fn: CollateFn) -> Batches:
        """Return micro-batches to learn from, in an order that the seed decides."""
        return Batches(
            examples,
            batch_size=self.batch_size,
            context=context,
            pad_id=pad_id,
            packing=self.packing,
            bucketing=self.bucketing and not self.packing,
            shuffle=True,
            seed=self.seed,
            collate_fn=collate_fn,
        )

    def general_text(self, level: ProbeLevel, tokenizer: Tokenizer, context: int) -> list[Example]:
        """Return examples of the held-out general text that probes of this level look at.

        Raises:
            DataError: there is no such text.
        """
        if self.general is None:
            return []
        text = Text()
        return encoded(text, self.rows(self.general, text), tokenizer, context, level)

    def claim(self) -> None:
        """Refuse a run folder that holds something else, its default name included; a dry run writes none."""
        if not self.dry_run:
            Run.check(self.folder, self)

    @property
    def folder(self) -> Path:
        """Run folder: ``out``, or one named after the recipe, so that the same command finds its own run again."""
        if self.out is not None:
            return Path(self.out)
        return default_folder(self)
