"""``limbeck harness``: measure a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, JsonValue

from limbeck.jobs.harness import Asked, harness_job
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.tasks.task import Measuring

__all__ = ["Harness"]

_DATA: dict[str, JsonValue] = {"section": "data"}


class Harness(ModelSource, Recipe):
    """Measure a model on tasks of lm-evaluation-harness: figures with intervals, protocols, scores of every item.

    It needs lm-eval: pip install 'limbeck[harness]'.
    """

    verb: ClassVar[str] = "harness"
    summary: ClassVar[str] = "measure a model on tasks of lm-evaluation-harness"

    tasks: tuple[str, ...] = Field(
        min_length=1,
        description="tasks by name or YAML file",
        json_schema_extra={"positional": True, "verbatim": False},
    )
    task_path: str | None = Field(
        None, description="folder of further task files; they come before lm-eval's own of the same name"
    )
    rows: dict[str, str] = Field(
        default_factory=dict,
        description="local rows of a task: TASK=FILE, and TASK_examples=FILE to draw examples from",
        json_schema_extra=_DATA,
    )
    shots: int | None = Field(None, ge=0, description="examples shown; none: as each task says")
    chat: bool = Field(False, description="put prompts through the model's chat template")
    limit: int | None = Field(
        None, ge=1, description="measure only so many items of each task", json_schema_extra=_DATA
    )
    batch_size: int = Field(16, ge=1, description="sequences at once; no score depends on it")
    context: int | None = Field(None, ge=2, description="tokens a window; none: the model's own")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    memory: bool = Field(False, description="measure peak memory at load and in use too, in a process of its own")

    def run(self, session: Display) -> Report:
        """Load, measure, report; with ``out`` also write a run folder."""
        measuring = Measuring(batch_size=self.batch_size, context=self.context, level=self.level)
        asked = Asked(
            tasks=self.tasks, path=self.task_path, data=self.rows, shots=self.shots, chat=self.chat, limit=self.limit,
            seed=self.seed, measuring=measuring, quiet=session.quiet,
        )  # fmt: skip
        return harness_job(self, self, asked, session, memory=self.memory)
