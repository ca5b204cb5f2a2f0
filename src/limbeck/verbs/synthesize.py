"""``limbeck synthesize``: training data from a teacher, filtered, with its cost and a datasheet."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.synthesis import SynthesisOptions, synthesis

__all__ = ["Synthesize"]


class Synthesize(SynthesisOptions):
    """Ask a teacher for training data, or filter answers that are there already.

    The teacher is a model behind an OpenAI-compatible endpoint, or, without ``endpoint``, a local model. The folder
    ``out`` receives the store of requests (``answers.sqlite``), the rows kept (``data.jsonl``), those dropped
    (``dropped.jsonl``) and a datasheet; the same command goes on where it stopped, and pays for nothing twice.
    """

    verb: ClassVar[str] = "synthesize"
    summary: ClassVar[str] = "make training data with a teacher: ask, filter, count, price"
    files: ClassVar[tuple[str, ...] | None] = (
        "data.jsonl", "dropped.jsonl", "datasheet.json", "datasheet.md", "synthesis.json",
        "answers.sqlite", "answers.sqlite-journal", "answers.sqlite-wal", "answers.sqlite-shm",
    )  # fmt: skip

    def run(self, session: Display) -> Report:
        """Ask, filter, write, report."""
        return synthesis(self, session)
