"""``limbeck self-distill``: a model makes its own paraphrase pairs, filters them and learns from what is left."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.self_distillation import SelfDistillationOptions, self_distillation

__all__ = ["SelfDistill"]


class SelfDistill(SelfDistillationOptions):
    """Impossible distillation (Jung et al. 2023): rounds of generate, filter, train and measure on the model itself.

    Every arm sees the same real pairs and takes equally many steps; plain fine-tuning is always among them.
    """

    verb: ClassVar[str] = "self-distill"
    summary: ClassVar[str] = "let a model make its own paraphrase pairs, and compare with plain fine-tuning"

    def run(self, session: Display) -> Report:
        """Make rounds, train every arm for every seed, compare, report."""
        return self_distillation(self, session)
