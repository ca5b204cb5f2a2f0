"""``limbeck export``: a model folder for others to open, checked by opening it."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.export.writing import ExportOptions, export_model
from limbeck.jobs.recipe import Display, Report

__all__ = ["Export"]


class Export(ExportOptions):
    """Write a model in a layout that other programs open, then load it back and compare its logits with the source's.

    The weights keep the dtype they are stored in unless ``--dtype`` says otherwise. An adapter beside the weights is
    merged into them for transformers and llama.cpp, and written without them for peft. Weights on a grid that GGUF has
    keep their codes bit for bit.
    """

    verb: ClassVar[str] = "export"
    summary: ClassVar[str] = "write a model for other programs, and check that it is the same"

    def run(self, session: Display) -> Report:
        """Write, load back, compare."""
        return export_model(self)
