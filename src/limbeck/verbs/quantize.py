"""``limbeck quantize``: fewer bits a weight, and what that costs and saves, measured beside the original."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.quantization import QuantizationOptions, quantization
from limbeck.jobs.recipe import Display, Report

__all__ = ["Quantize"]


class Quantize(QuantizationOptions):
    """Quantize a model after training, save it, and compare it with the original.

    Figures of the task with intervals and a paired verdict, KL to the original and top-token agreement, bytes of the
    files of both, speed of both.
    """

    verb: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "quantize a model, and measure what it loses and saves"

    def run(self, session: Display) -> Report:
        """Quantize, save, measure both, compare."""
        return quantization(self, session)
