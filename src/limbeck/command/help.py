"""The help of a verb: sections of flags with types, defaults, choices and bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from limbeck.command.flags import COMMON, MISSING, Flag, shown

__all__ = ["default_of", "described", "entry", "sections", "write"]

_WIDEST = 34
"""Columns of the flag beyond which its description starts on the next line."""


def sections(flags: Sequence[Flag]) -> list[tuple[str, list[Flag]]]:
    """Group flags under their headings: those without one first, then sections, unions' members, the common ones."""
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        if not flag.positional:
            groups.setdefault(flag.section, []).append(flag)
    rank = {"": 0, COMMON: 2}
    return sorted(groups.items(), key=lambda group: (rank.get(group[0], 1), any(f.member for f in group[1])))


def entry(flag: Flag) -> str:
    """Return how the flag is typed: ``--steps INT``, ``--packing / --no-packing``, ``PROMPT``."""
    if flag.positional:
        return flag.name.upper()
    shortest = flag.spellings[0]
    if flag.form == "switch":
        return f"{shortest} / --no-{shortest[2:]}"
    if sum(len(shown(c)) + 1 for c in flag.choices) > _WIDEST:  # listed in the description instead
        return f"{shortest} {'KIND' if flag.form in ('union', 'unions') else 'NAME'}"
    return f"{shortest} {flag.metavar}"


def described(flag: Flag) -> str:
    """Return description, long name, choices too long for the entry, how often it may be given, bounds and default."""
    notes = []
    if flag.choices and flag.metavar not in entry(flag):
        notes.append("one of " + ", ".join(shown(c) for c in flag.choices))
    if flag.form in ("list", "unions"):
        notes.append("repeat" if flag.verbatim else "repeat or separate by commas")
    if flag.form == "mapping":
        notes.append("repeat")
    if flag.bounds:
        notes.append(flag.bounds)
    if (default := default_of(flag)) is not None:
        notes.append(f"default: {default}")
    parts = [flag.text, f"[{'; '.join(notes)}]" if notes else ""]
    if flag.short:
        parts.append(f"(--{flag.name})")
    return " ".join(p for p in parts if p)


def default_of(flag: Flag) -> str | None:
    """Return the default as it would be typed, or None where there is none worth showing."""
    value = flag.default
    if value is MISSING or (value in (None, "", [], {}) and not isinstance(value, bool)):
        return "none" if value is None and flag.nullable else None
    if isinstance(value, dict):
        return str(value["kind"]) if "kind" in value else ", ".join(f"{k}={shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        if any(isinstance(v, dict) and "kind" not in v for v in value):
            return None  # too long to be read
        return ", ".join(str(v["kind"]) if isinstance(v, dict) else shown(v) for v in value)
    return repr(value) if isinstance(value, str) and not value.isprintable() else shown(value)


def write(formatter: click.HelpFormatter, flags: Sequence[Flag], extra: Iterable[tuple[str, str]] = ()) -> None:
    """Write arguments, every section of flags, and the ``extra`` options that every verb has, below the common ones."""
    positional = [f for f in flags if f.positional]
    if positional:
        with formatter.section("arguments"):
            formatter.write_dl([(entry(f), described(f)) for f in positional], col_max=_WIDEST)
    for title, group in sections(flags):
        if title == COMMON:
            continue
        with formatter.section(title or "options"):
            if group[0].intro:
                formatter.write_text(group[0].intro)
            formatter.write_dl([(entry(f), described(f)) for f in group], col_max=_WIDEST)
    common = [(entry(f), described(f)) for f in flags if f.section == COMMON and not f.positional]
    if common or extra:
        with formatter.section(COMMON):
            formatter.write_dl([*common, *extra], col_max=_WIDEST)
