"""Answers that are numbers: finding them in worked solutions, strictly and flexibly, and comparing them as numbers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

__all__ = ["flexible_answer", "gold_answer", "same_number", "strict_answer"]

_NUMBER = r"-?\$?-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
_GOES_ON = r"(?!\d|[-.,:/+*^×]\d|[eE][-+]?\d)"  # 1,2345 is not 1,234, nor is 1/2 one
_STRICT = re.compile(rf"####\s*({_NUMBER}){_GOES_ON}")
_FLEXIBLE = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\$?\.\d+")


def strict_answer(text: str) -> Decimal | None:
    """The number after the first ``####``, as GSM8K writes its solutions (Cobbe et al. 2021); None without one.

    Only a whole number counts: the 1 of ``1/2``, ``1,5`` or ``1e3`` is no answer.
    """
    found = _STRICT.search(_ascii(text))
    return None if found is None else _number(found.group(1))


def flexible_answer(text: str) -> Decimal | None:
    """The last number of the text; None where it holds none. A minus after digit, letter or bracket is no sign."""
    text = _ascii(text)
    found = list(_FLEXIBLE.finditer(text))
    if not found:
        return None
    digits, before = found[-1].group(), text[: found[-1].start()]
    if digits.startswith("-") and (before[-1:].isalnum() or before[-1:] in tuple(")]}%")):
        digits = digits[1:]
    return _number(digits)


def gold_answer(solution: str) -> Decimal | None:
    """The answer of a reference solution: after ``####``; a solution that is a number alone is its own answer."""
    strict = strict_answer(solution)
    return strict if strict is not None else _number(solution.strip())


def same_number(found: Decimal | None, wanted: Decimal) -> bool:
    """Exact equality as numbers: ``18``, ``18.0`` and ``$18`` are one; nothing found is never right."""
    return found is not None and found == wanted


def _ascii(text: str) -> str:
    """``text`` with the minus sign that typesetters use as the one that keyboards have."""
    return text.replace("\u2212", "-")


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace("$", "").replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
