"""Filters that compare rows with each other and with rows of training or evaluation, by ``data.audit.report``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from limbeck.data.audit.report import AuditSettings, Finding, audit
from limbeck.data.rows import Rows
from limbeck.synth.filters import Filter

__all__ = ["Duplicates", "Overlap"]


def _why(finding: Finding, other: str) -> str:
    return f"{finding.kind} ({finding.count} shared, {finding.share:.2f}) with {other}: {finding.excerpt[:60]!r}"


@dataclass(frozen=True, slots=True)
class Duplicates(Filter):
    """Drop rows that repeat an earlier one: equal, equal but for case and punctuation, or near-duplicates.

    Attributes:
        fields: that are compared; empty: those that hold text.
        settings: of the comparison; ``kinds`` other than exact, normalised and near are of no use here.
    """

    name: ClassVar[str] = "duplicates"
    fields: tuple[str, ...] = ()
    settings: AuditSettings = field(default_factory=AuditSettings)

    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Find repeats; the first of equal rows is kept."""
        out: dict[str, str] = {}
        if rows:
            for finding in audit(rows, {}, within=True, fields=self.fields, settings=self.settings).duplicates:
                out.setdefault(finding.row, _why(finding, finding.other))
        return out


@dataclass(frozen=True, slots=True)
class Overlap(Filter):
    """Drop rows that share text with training, development or test rows (I28).

    Attributes:
        against: name -> rows that nothing may be shared with.
        fields: that are compared; empty: those that hold text.
        settings: of the comparison.
    """

    name: ClassVar[str] = "overlap"
    against: Mapping[str, Rows]
    fields: tuple[str, ...] = ()
    settings: AuditSettings = field(default_factory=AuditSettings)

    def findings(self, rows: Rows) -> tuple[Finding, ...]:
        """Return every finding: row, set, kind and what is shared."""
        return audit(rows, self.against, fields=self.fields, settings=self.settings).leaks if rows else ()

    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Find overlaps; the reason names the set, the row and what is shared most."""
        out: dict[str, str] = {}
        for finding in sorted(self.findings(rows), key=lambda f: (-f.share, -f.count)):
            out.setdefault(finding.row, _why(finding, f"{finding.other} of {finding.against}"))
        return out
