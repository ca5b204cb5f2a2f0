"""``limbeck dpo``: a model learns to prefer chosen answers over rejected ones."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.preference import PreferenceOptions, preference_training
from limbeck.jobs.recipe import Display, Report

__all__ = ["DPO"]


class DPO(PreferenceOptions):
    """Train a model on preference pairs against what it was at the start (Rafailov et al. 2023).

    The loss of a pair is ``-log sigmoid(beta h)``, h being how much more than the reference the model prefers the
    chosen answer: log 2 at the start. Dropout is off unless asked for, as the reference has none.
    """

    verb: ClassVar[str] = "dpo"
    summary: ClassVar[str] = "train a model to prefer chosen answers over rejected ones"

    def run(self, session: Display) -> Report:
        """Train, save, measure, report."""
        return preference_training(self).run(session)
