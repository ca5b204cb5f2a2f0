"""The border for values: every reader's values pass here once, so that text means the same whatever file held it.

Line ends become LF, numbers that are not finite become no value, and halves of a surrogate pair become U+FFFD.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

__all__ = ["REPLACEMENT", "as_text", "class_of", "line_feeds", "settle"]

REPLACEMENT = "\ufffd"
"""Stands for half of a surrogate pair, which no UTF-8 can hold."""

_HALVES = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?")
_DEEPEST = 100  # lists and mappings within each other


def line_feeds(text: str) -> str:
    """Return ``text`` with every CR LF and every lone CR as LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def settle(value: Any) -> tuple[Any, int]:
    """Normalise one value of a row, and what is inside it.

    Args:
        value: as a file's library gives it.

    Returns:
        The value: line ends as LF, NaN and infinities as None, halves of a surrogate pair as ``REPLACEMENT``; and how
        many halves were replaced.

    Raises:
        ValueError: lists or mappings within each other more than 100 deep.
    """
    return _settle(value, 0)


def _settle(value: Any, depth: int) -> tuple[Any, int]:
    if isinstance(value, str):
        text = line_feeds(value)
        return (text, 0) if text.isascii() else _HALVES.subn(REPLACEMENT, text)
    if isinstance(value, float | Decimal):
        return (value, 0) if math.isfinite(value) else (None, 0)
    if depth > _DEEPEST and isinstance(value, Mapping | list | tuple):
        raise ValueError(f"lists or objects stand within each other more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        pairs = [(_settle(k, depth + 1), _settle(v, depth + 1)) for k, v in value.items()]
        return {k: v for (k, _), (v, _) in pairs}, sum(n + m for (_, n), (_, m) in pairs)
    if isinstance(value, list | tuple):
        parts = [_settle(v, depth + 1) for v in value]
        return [v for v, _ in parts], sum(n for _, n in parts)
    return value, 0


def as_text(value: Any) -> str | None:
    """Return a settled value as text; None where it is no text: nothing, a list, a mapping, bytes.

    Booleans are spelled as JSON has them; numbers, dates and times as Python does.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float | Decimal | date | time) else None


def class_of(value: Any, labels: Sequence[str]) -> int | None:
    """Return the index of the class that ``value`` names; None where it names none.

    A name is taken as given: ``01``, ``1_0`` and ``0.0`` are names of their own. Only where no label is spelled so is a
    value compared as a number (``1.0`` of a float column with the label ``1``), and only where one label alone equals
    it. A boolean is spelled ``true``, ``True`` or ``1``.
    """
    text = as_text(value)
    if text is None:
        return None
    for spelled in (text, text.capitalize(), str(int(value))) if isinstance(value, bool) else (text.strip(),):
        if spelled in labels:
            return labels.index(spelled)
    number = None if isinstance(value, bool) else _number(text.strip())
    equal = [] if number is None else [i for i, label in enumerate(labels) if _number(label) == number]
    return equal[0] if len(equal) == 1 else None


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None
