"""Which task a model is measured on, and how: fields of every recipe that measures one."""

from __future__ import annotations

from pydantic import Field

from limbeck.config import Config
from limbeck.decode.settings import Decoding
from limbeck.tasks.table import AnyTask
from limbeck.tasks.task import Measuring
from limbeck.tasks.text import Text

__all__ = ["MeasuredTask"]


class MeasuredTask(Config):
    """A task, how it is measured, and how the model generates for it."""

    task: AnyTask = Field(Text(), description="kind of work")
    measuring: Measuring = Field(default_factory=Measuring, description="how it is measured")
    decoding: Decoding | None = Field(None, description="how it generates; none: the task's choice")

    def generates(self, seed: int | None = None) -> Decoding:
        """Return how the model generates: as asked, else as the task does; from ``seed`` unless None."""
        chosen = self.decoding or self.task.decoding()
        return chosen if seed is None else chosen.seeded(seed)
