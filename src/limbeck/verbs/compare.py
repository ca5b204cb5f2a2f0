"""``limbeck compare``: two evaluations item by item, with intervals and a verdict in words."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.comparison import ComparisonOptions, comparison
from limbeck.jobs.recipe import Display, Report

__all__ = ["Compare"]


class Compare(ComparisonOptions):
    """Compare two runs (or two files of scores) on the items that both were measured on.

    For every figure: the paired difference with its interval, a permutation test, a verdict in words, and the items
    that changed most. The first figure is judged alone, the further ones after Holm.
    """

    verb: ClassVar[str] = "compare"
    summary: ClassVar[str] = "compare two runs item by item, with intervals and a verdict"
    files: ClassVar[tuple[str, ...] | None] = ("comparison.json",)

    def run(self, session: Display) -> Report:
        """Pair, resample, judge."""
        return comparison(self)
