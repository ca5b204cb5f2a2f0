"""``limbeck info``: what a model or a run is."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.description import DescriptionOptions, description
from limbeck.jobs.recipe import Display, Report

__all__ = ["Info"]


class Info(DescriptionOptions):
    """Describe a model (a folder, a run, a .gguf file or a Hub id): shape, size, cost a token, tokenizer and settings.

    Of a run also its recipe, how far it is, its best evaluation and its report.
    """

    verb: ClassVar[str] = "info"
    summary: ClassVar[str] = "describe a model or a run"
    files: ClassVar[tuple[str, ...] | None] = ("info.json",)

    def run(self, session: Display) -> Report:
        """Load what is there and describe it."""
        return description(self)
