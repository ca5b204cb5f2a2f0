"""``limbeck evaluate``: measure a model on a task's rows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, JsonValue, model_validator

from limbeck.jobs.evaluation import EvaluationOptions, evaluation
from limbeck.jobs.harness import Asked, harness_job
from limbeck.jobs.recipe import Display, Report
from limbeck.old_names import warn

__all__ = ["Evaluate"]

_HARNESS: dict[str, JsonValue] = {"section": "harness"}
_OWN_WAY = (
    "data", "part", "columns", "separator", "dialect", "split_by", "fractions", "task", "decoding", "predictions",
    "probes", "learned", "overlap", "base", "general", "zero_shot", "zero_shot_task",
)  # fmt: skip


class Evaluate(EvaluationOptions):
    """Measure a model: figures with intervals, their protocol, per-item scores, cost."""

    verb: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "measure a model on a task, with intervals and per-item scores"

    harness: tuple[str, ...] = Field(
        (),
        description="earlier name of 'limbeck harness TASK...'",
        json_schema_extra=_HARNESS,
    )
    harness_path: str | None = Field(
        None, description="earlier name of --task-path of 'limbeck harness'", json_schema_extra=_HARNESS
    )
    harness_data: dict[str, str] = Field(
        default_factory=dict,
        description="earlier name of --rows of 'limbeck harness'",
        json_schema_extra=_HARNESS,
    )
    harness_shots: int | None = Field(
        None, ge=0, description="earlier name of --shots of 'limbeck harness'", json_schema_extra=_HARNESS
    )
    harness_chat: bool = Field(
        False, description="earlier name of --chat of 'limbeck harness'", json_schema_extra=_HARNESS
    )

    @model_validator(mode="after")
    def _one_way(self) -> Evaluate:
        """Rows and a task of the project's own, or tasks of the harness; what the other way alone reads is refused."""
        fields = type(self).model_fields
        changed = [n for n in fields if getattr(self, n) != fields[n].get_default(call_default_factory=True)]
        if self.harness:
            odd = [n for n in changed if n in _OWN_WAY] + ["generate"] * (not self.measuring.generate)
            if odd:
                raise ValueError(f"{odd[0]} belongs to a task of this project's own: leave it out with a harness")
            return self
        odd = [n for n in changed if n.startswith("harness")]
        if odd:
            raise ValueError(f"{odd[0]} needs tasks: name them with harness")
        for name, needs in (
            ("overlap", "learned"),
            ("general", "base"),
            ("zero_shot", "base"),
            ("zero_shot_task", "base"),
        ):
            if name in changed and getattr(self, needs) is None:
                raise ValueError(f"{name} needs {needs}: name it too")
        if self.base is not None and self.probes == "off":
            raise ValueError("base is what probes compare with: turn them on, or leave it out")
        if self.data is None:
            raise ValueError("there is nothing to measure on: name rows with data, or tasks with harness")
        return self

    def run(self, session: Display) -> Report:
        """Measure on rows; with ``harness``, do what ``limbeck harness`` does."""
        if not self.harness:
            return evaluation(self, session)
        warn("evaluate --harness", "limbeck harness")
        asked = Asked(
            tasks=self.harness, path=self.harness_path, data=self.harness_data, shots=self.harness_shots,
            chat=self.harness_chat, limit=self.limit, seed=self.seed, measuring=self.measuring, quiet=session.quiet,
        )  # fmt: skip
        return harness_job(self, self, asked, session, memory=self.memory)
