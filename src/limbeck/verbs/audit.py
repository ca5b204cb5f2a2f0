"""``limbeck audit``: training rows against evaluation rows, and against themselves."""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.auditing import AuditingOptions, auditing
from limbeck.jobs.recipe import Display, Report

__all__ = ["Audit"]


class Audit(AuditingOptions):
    """Look for evaluation text in training text: copies, shared fields, shared runs of words, near-duplicates, verse.

    With ``out`` the findings are written to ``findings.jsonl``, the summary to ``audit.json`` and, with ``on``
    ``drop``, the rows that are left to ``kept.jsonl``.
    """

    verb: ClassVar[str] = "audit"
    summary: ClassVar[str] = "look for evaluation text in training text, and for duplicates"
    files: ClassVar[tuple[str, ...] | None] = ("findings.jsonl", "audit.json", "kept.jsonl")

    def run(self, session: Display) -> Report:
        """Compare, decide, report."""
        return auditing(self, session)
