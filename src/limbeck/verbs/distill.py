"""``limbeck distill``: a student learns a task from its answers and from a teacher."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.distillation import DistillationOptions, distillation
from limbeck.jobs.recipe import Display, Report

__all__ = ["Distill"]


class Distill(DistillationOptions):
    """Train a student on ``alpha * CE(answers) + beta * T^2 * KL(teacher || student)`` (Hinton et al. 2015).

    The student is ``model``, or a fresh ``architecture``, or, with neither, a copy of the teacher that a technique
    such as depth makes smaller.
    """

    verb: ClassVar[str] = "distill"
    summary: ClassVar[str] = "train a student from a teacher's distributions and the task's answers"

    def run(self, session: Display) -> Report:
        """Train, save, measure, report."""
        return distillation(self).run(session)
