"""``limbeck doctor``: what the machine offers, what is missing, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.machine import machine_report

__all__ = ["Doctor"]


class Doctor(Recipe):
    """Describe this machine: processor, compiled kernels, compiler, caches, extras, torch, GPU and disk.

    It says what is missing or slow and how to mend it, and asks nothing of the network.
    """

    verb: ClassVar[str] = "doctor"
    summary: ClassVar[str] = "describe this machine, what is missing on it, and how to mend it"
    files: ClassVar[tuple[str, ...] | None] = ("doctor.json",)

    def run(self, session: Display) -> Report:
        """Look, and say what was found."""
        report = machine_report(self.verb)
        if self.out is not None:
            report.write(Path(self.out) / "doctor.json")
        return report
