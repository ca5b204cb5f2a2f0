"""``limbeck pretrain``: a fresh decoder on text."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.pretraining import PretrainingOptions, pretraining
from limbeck.jobs.recipe import Display, Report

__all__ = ["Pretrain"]


class Pretrain(PretrainingOptions):
    """Train a fresh decoder from random weights."""

    verb: ClassVar[str] = "pretrain"
    summary: ClassVar[str] = "train a fresh decoder on text"

    def run(self, session: Display) -> Report:
        """Train, save, measure, report."""
        return pretraining(self).run(session)
