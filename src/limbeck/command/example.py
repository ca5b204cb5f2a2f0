"""A commented YAML file for ``--config``, from a verb's example and its schema; imports neither torch nor pydantic."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from limbeck.command.flags import COMMON, MISSING, Flag, shown

__all__ = ["PLANS", "example"]

PLANS = {"study": "example-study.yaml", "fit": "example-search.yaml"}
"""Verb whose argument is a YAML file of its own -> an example of that file, shipped in ``limbeck.study``."""

_PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*(?<!:)")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n", "~"}
_WIDTH = 116


@dataclass
class _Node:
    """One key: its value and comment, or the keys below it; a key that is not ``given`` is commented out."""

    value: Any = MISSING
    given: bool = False
    text: str = ""
    below: dict[str, _Node] = field(default_factory=dict)


def example(
    verb: str, about: Mapping[str, Any], flags: Sequence[Flag], often: Sequence[Flag], given: Mapping[str, Any]
) -> str:
    """Return the file's text.

    Args:
        verb: its name.
        about: its entry in the schema.
        flags: every flag of the verb.
        often: those that most people use, which are shown with their defaults, commented out.
        given: the values of the verb's example.
    """
    if verb in PLANS:
        return files("limbeck.study").joinpath(PLANS[verb]).read_text(encoding="utf-8")
    root = _Node()
    properties = about["schema"]["properties"]
    for flag in sorted(flags, key=lambda f: f.section == COMMON):
        if flag.member is not None:
            continue
        value = _at(given, flag.path)
        default = _default(flag)
        unset = len(flag.path) > 1 and properties[flag.path[0]].get("default", MISSING) is None
        if value is not MISSING:
            _put(root, flag, value, given=True)
        elif flag in often and default is not MISSING and not unset:  # below a null there are no defaults
            _put(root, flag, default, given=False)
    head = [
        f"# limbeck {verb} --config FILE: {about['summary']}",
        "# A flag on the command line overrides its line here. Lines that are commented out hold defaults.",
        f"# Every key: limbeck {verb} --help-all",
    ]
    return "\n".join([*head, *_lines(root, 0)]) + "\n"


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    at: Any = values
    for key in path:
        if not isinstance(at, Mapping) or key not in at:
            return MISSING
        at = at[key]
    return at


def _default(flag: Flag) -> Any:
    """Return the default worth showing, or ``MISSING``: of a union its kind alone."""
    value = flag.default
    if isinstance(value, Mapping):
        return {"kind": value["kind"]} if "kind" in value else MISSING
    return MISSING if value is None or isinstance(value, list) or value == "" else value


def _put(root: _Node, flag: Flag, value: Any, given: bool) -> None:
    at = root
    for key in flag.path:
        at = at.below.setdefault(key, _Node())
        at.given = at.given or given
    choices = f" ({', '.join(map(shown, flag.choices))})" if flag.choices else ""
    at.value, at.text = value, flag.text + choices


def _lines(node: _Node, depth: int) -> Iterator[str]:
    """Yield the keys below ``node``, each below its comment."""
    for key, one in node.below.items():
        mark = "" if one.given else "# "
        indent = "  " * depth
        for line in textwrap.wrap(one.text, _WIDTH - len(indent)):
            yield f"{indent}#: {line}"
        yield f"{indent}{mark}{_flow(key)}:{'' if one.below else ' ' + _flow(one.value)}"
        yield from _lines(one, depth + 1)


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
