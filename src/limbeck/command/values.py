"""From what was typed to the values of a recipe: text to typed items, and flags laid over the YAML."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.command.flags import MISSING, Flag, Member, shown
from limbeck.errors import ConfigError, nearest
from limbeck.old_names import kind_now

__all__ = ["Given", "converted", "overlay"]

Given = Sequence[tuple[Flag, Any]]
"""Flags that were given, each with its converted value."""

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def converted(flag: Flag, texts: Sequence[str]) -> Any:
    """Turn what was typed for ``flag``, once or several times, into its value.

    Raises:
        ConfigError: a text that is not of the flag's type or not among its choices.
    """
    if flag.nullable and tuple(texts) == ("none",):
        return None
    if flag.form == "yaml":
        return _yaml(flag, texts[-1])
    if flag.form == "mapping":
        return dict(_pair(flag, text) for text in texts)
    if flag.form == "unions" and tuple(texts) == ("none",):
        return []
    if flag.form in ("list", "unions"):
        parts = [p for text in texts for p in ([text] if flag.verbatim else text.split(",")) if p or flag.verbatim]
        items = [_item(flag, p) for p in parts]
        return items[0] if flag.single and len(items) == 1 else items
    return _item(flag, texts[-1])


def _quoted(text: str) -> str:
    """Quote what was typed for a message of one line: characters that do not print are escaped."""
    return f"'{text}'" if text.isprintable() else repr(text)


def _item(flag: Flag, text: str) -> Any:
    """Read one scalar: a choice, or the narrowest of the flag's types that fits."""
    if flag.choices:
        text = kind_now(text) if flag.form in ("union", "unions") else text
        for choice in flag.choices:
            if text.replace("_", "-") == shown(choice).replace("_", "-"):
                return choice
        known = [shown(c) for c in flag.choices]
        raise ConfigError(f"{_called(flag)} is one of {', '.join(known)}, not {_quoted(text)}{nearest(text, known)}")
    if "boolean" in flag.types and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for name, kind in (("integer", int), ("number", float)):
        if name in flag.types:
            try:
                return kind(text)
            except ValueError:
                continue
    if "string" in flag.types:
        return text
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    wanted = " or ".join(word for kind, word in words.items() if kind in flag.types)
    raise ConfigError(f"{_called(flag)} takes {wanted}{' or none' if flag.nullable else ''}, not {_quoted(text)}")


def _pair(flag: Flag, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{_called(flag)} takes KEY=VALUE, not {_quoted(text)}")
    return key, _item(flag, value)


def _yaml(flag: Flag, text: str) -> Any:
    from limbeck.config import parse

    return parse(text, _called(flag))


def _called(flag: Flag) -> str:
    return flag.name.upper() if flag.positional else flag.spellings[0]


def overlay(values: Mapping[str, Any], flags: Sequence[Flag], given: Given) -> dict[str, Any]:
    """Lay the flags that were given over ``values``, the content of the YAML file.

    Kinds named for a union replace those that stand there; a kind that stood there already keeps its settings. A
    member's flag changes the entry of its kind.

    Raises:
        ConfigError: a member's flag without its kind or with two entries of it, or a flag for something inside a
            value that another flag sets whole.
    """
    out = copy.deepcopy(dict(values))
    kinds = {f.path: value for f, value in given if f.form in ("union", "unions")}
    whole = {f.path for f, _ in given if f.member is None}  # a member's path starts inside the member
    for flag, value in given:
        if flag.member is None and flag.form not in ("union", "unions"):
            _set(out, flag.path, value, whole)
    for union in (f for f in flags if f.form in ("union", "unions") and f.member is None):
        inside = [(f, value) for f, value in given if f.member is not None and f.member.union == union.path]
        if union.path in kinds or inside:
            entries = _entries(union, _get(out, union), kinds.get(union.path, MISSING))
            for flag, value in inside:
                _set(_entry(union, flag, entries), flag.path, value, set())
            _set(out, union.path, _whole(union, entries, kinds.get(union.path, MISSING)), set())
    return out


def _entries(union: Flag, stands: Any, kinds: Any) -> list[Any]:
    """Return the members of a union after its own flag: the kinds named, or else what stands there."""
    entries = [stands] if isinstance(stands, Mapping) else stands if isinstance(stands, list) else []
    if kinds is MISSING:
        return entries
    named = [] if kinds is None else [kinds] if isinstance(kinds, str) else kinds
    out = []
    for kind in named:
        at = next((e for e in entries if isinstance(e, Mapping) and e.get("kind") == kind), None)
        out.append({"kind": kind} if at is None else at)
        entries = [e for e in entries if e is not at]
    return out


def _whole(union: Flag, entries: list[Any], kinds: Any) -> Any:
    """Return the union's value: one member where it holds one, else the list."""
    if kinds is None:
        return None
    alone = union.form == "union" or (union.single and len(entries) == 1)
    return entries[0] if alone else entries


def _entry(union: Flag, flag: Flag, entries: list[Any]) -> dict[str, Any]:
    """Return the one entry that a member's flag changes."""
    member: Member = flag.member  # type: ignore[assignment]
    found = [e for e in entries if isinstance(e, dict) and e.get("kind") == member.kind]
    if not found:
        raise ConfigError(f"{flag.spellings[0]} needs {union.spellings[0]} {member.kind}, which is not given")
    if len(found) > 1:
        raise ConfigError(f"{flag.spellings[0]} is ambiguous: '{member.kind}' stands {len(found)} times; use --config")
    return found[0]


def _get(values: Mapping[str, Any], union: Flag) -> Any:
    """Return what stands at the union's path: the YAML's value, or the default."""
    at: Any = values
    for key in union.path:
        if not isinstance(at, Mapping) or key not in at:
            return None if union.default is MISSING else copy.deepcopy(union.default)
        at = at[key]
    return at


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any, given: set[tuple[str, ...]]) -> None:
    """Write ``value`` at ``path``, making mappings on the way where the YAML has none."""
    at = values
    for i, key in enumerate(path[:-1]):
        if path[: i + 1] in given:
            whole, part = ".".join(path[: i + 1]), ".".join(path)
            raise ConfigError(f"--{whole} and --{part} exclude each other: give one".replace("_", "-"))
        if not isinstance(at.get(key), dict):
            at[key] = {}
        at = at[key]
    old = at.get(path[-1])
    if isinstance(old, dict) and isinstance(value, dict) and "kind" not in value:  # a member is set whole
        value = {**old, **value}
    at[path[-1]] = value
