"""Audit of training rows against evaluation rows, and against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.data.audit.find import KINDS
from limbeck.data.audit.report import WITHIN, AuditSettings, audit
from limbeck.data.audit.report import AuditReport as Found
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.jobs.source import Reading
from limbeck.storage import plain, write_text
from limbeck.tasks.table import AnyTask

__all__ = ["AuditingOptions", "auditing", "show_audit"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_SHOWN = 10


class AuditingOptions(Reading, Recipe):
    """Rows, what to look for, and what to do with what is found."""

    train: str = Field(
        description="training rows: a path, toy:NAME or a Hub id", json_schema_extra={"positional": True}
    )
    against: tuple[str, ...] = Field((), description="evaluation rows, one source or several", json_schema_extra=_DATA)
    within: bool = Field(False, description="also look for rows that repeat an earlier one", json_schema_extra=_DATA)
    fields: tuple[str, ...] = Field(
        (), description="fields to compare; none: those that hold text", json_schema_extra=_DATA
    )
    on: Literal["list", "drop", "refuse"] = Field("list", description="what to do with overlapping training rows")
    task: AnyTask | None = Field(None, description="read as this kind of work does; none: any table or text")
    compare: AuditSettings = Field(default_factory=AuditSettings, description="kinds of overlap and their thresholds")

    @model_validator(mode="after")
    def _something_to_do(self) -> AuditingOptions:
        if not self.against and not self.within:
            raise ValueError("there is nothing to compare with: name evaluation rows with 'against', or set 'within'")
        return self


def auditing(options: AuditingOptions, display: Display) -> Report:
    """Compare, decide, report.

    Raises:
        DataError: a source cannot be read, or overlaps are refused.
    """
    train = options.rows(options.train, options.task)
    against = {source: options.rows(source, options.task) for source in options.against}
    display.say(*train.notes, f"auditing {len(train)} rows of {options.train}")
    found = audit(train, against, within=options.within, fields=options.fields, settings=options.compare)
    if options.out is not None:
        lines = (json.dumps(plain(f), ensure_ascii=False) for f in found.findings)
        write_text(Path(options.out) / "findings.jsonl", "".join(f"{line}\n" for line in lines))
    kept, found = found.decide(options.on, train)
    values: dict[str, Any] = {"verb": options.verb, **found.describe(), "kept": len(kept)}
    report = Report(values, show_audit(found))
    if options.out is not None:
        report.write(Path(options.out) / "audit.json")
        if options.on == "drop":
            rows = (json.dumps(plain({"id": row.id, **row.fields}), ensure_ascii=False) for row in kept)
            write_text(Path(options.out) / "kept.jsonl", "".join(f"{row}\n" for row in rows))
    return report


def show_audit(found: Found) -> tuple[RenderableType, ...]:
    """Return an audit for people: a table of counts, what shares most, and sentences."""
    body: list[RenderableType] = []
    counts = found.counts
    if counts:
        table = Table(title="training rows by what they share", title_justify="left")
        for column in ("with", "kind", "rows", "most alike", "share", "text"):
            table.add_column(column, justify="right" if column in ("rows", "share") else "left", overflow="fold")
        for against, kinds in counts.items():
            for kind in (k for k in KINDS if k in kinds):
                some = [f for f in found.findings if (f.against, f.kind) == (against, kind)]
                top = max(some, key=lambda f: (f.share, f.count))
                pair = Text(f"{top.row} {'=' if top.share == 1 else '~'} {top.other}")
                name, share = Text(Path(against).name), f"{top.share:.0%}"
                table.add_row(name, kind, str(kinds[kind]), pair, share, Text(top.excerpt[:60]))
        body.append(table)
    told = [("rows", f"{found.rows:,}, fields {', '.join(found.fields)}")]
    told += [("labels", f"{name}: {field} {_balance(counts)}") for name, of in found.labels.items()
             for field, counts in of.items()]  # fmt: skip
    if found.too_short:
        told.append(("too short", f"{found.too_short} texts were not compared"))
    if found.dropped:
        told.append(("dropped", f"{len(found.dropped)} rows"))
    body.append(facts("audit", told[: 2 + _SHOWN]))
    body += [Text(sentence, style="yellow") for sentence in found.sentences()]
    if not found.findings:
        sets = ", ".join([*found.against, WITHIN][: len(found.against) or 1])
        body.append(Text(f"nothing shared with {sets}", style="green"))
    return tuple(body)


def _balance(counts: Any) -> str:
    total = sum(counts.values())
    return ", ".join(f"{label} {count} ({count / total:.0%})" for label, count in list(counts.items())[:_SHOWN])
