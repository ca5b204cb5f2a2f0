"""``limbeck generate``: continue prompts, streamed as they are written."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.prompting import PromptingOptions, prompting
from limbeck.jobs.recipe import Display, Report

__all__ = ["Generate"]


class Generate(PromptingOptions):
    """Continue one prompt, or every row of a file."""

    verb: ClassVar[str] = "generate"
    summary: ClassVar[str] = "continue prompts with a model"
    files: ClassVar[tuple[str, ...] | None] = ("generations.json",)

    def run(self, session: Display) -> Report:
        """Generate; one prompt is streamed, several are printed when done."""
        return prompting(self, session)
