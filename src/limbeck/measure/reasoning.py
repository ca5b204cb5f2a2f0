"""Answers that are numbers: finding them in worked solutions, strictly and flexibly, and comparing them as numbers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

__all__ = ["flexible_answer", "gold_answer", "same_number", "strict_answer"]

_SPACES = " \u00a0\u2009\u202f"
_APART = rf"(?:,|\{{,\}}|\\,|['\u2019{_SPACES}])"
"""What may separate groups of three digits: ``,``, LaTeX's ``{,}`` and backslash comma, an apostrophe, a space."""

_GROUPED = rf"\d{{1,3}}(?P<apart>{_APART})\d{{3}}(?:(?P=apart)\d{{3}})*(?!\d)"
_DIGITS = rf"(?:{_GROUPED}|\d+)"
_NUMBER = rf"-?\\?\$?-?(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_GOES_ON = rf"(?!\d|[-.,:/+*^×_]\d|[eE][-+]?\d|{_APART}\d)"  # 1,2345 is not 1,234, nor is 1/2 one
_MARKS = re.compile(rf"{_APART}(?=\d)|\\?\$")
_STRICT = re.compile(rf"\s*({_NUMBER}){_GOES_ON}")
_ALONE = re.compile(_NUMBER)
_BEFORE_ANSWER = "####"
_FLEXIBLE = re.compile(rf"-?\\?\$?{_DIGITS}(?:\.\d+)?|-?\\?\$?\.\d+")


def strict_answer(text: str) -> Decimal | None:
    """Return the number after the first ``####``, as GSM8K writes its solutions (Cobbe et al. 2021); None without one.

    Only a whole number counts: the 1 of ``1/2``, ``1,5``, ``1e3`` or ``1 00`` is no answer. Groups of three digits may
    stand apart by a comma, a space, an apostrophe, or LaTeX's two thin commas.
    """
    _, _, after = _ascii(text).partition(_BEFORE_ANSWER)
    found = _STRICT.match(after)
    return None if found is None else _number(found.group(1))


def flexible_answer(text: str) -> Decimal | None:
    """Return the last number of the text; None where it holds none. A minus after digit, letter or bracket is none."""
    text = _ascii(text)
    found = list(_FLEXIBLE.finditer(text))
    if not found:
        return None
    digits, before = found[-1].group(), text[: found[-1].start()]
    if digits.startswith("-") and (before[-1:].isalnum() or before[-1:] in tuple(")]}%")):
        digits = digits[1:]
    return _number(digits)


def gold_answer(solution: str) -> Decimal | None:
    """Return the answer of a reference solution: after ``####``; a solution that is a number alone is its own answer.

    None where it is unclear: no number there, or several ``####`` with different ones.
    """
    solution = _ascii(solution)
    if _BEFORE_ANSWER not in solution:
        alone = _ALONE.fullmatch(solution.strip())
        return None if alone is None else _number(alone.group())
    _, *parts = solution.split(_BEFORE_ANSWER)
    found = {strict_answer(_BEFORE_ANSWER + part) for part in parts}
    return found.pop() if len(found) == 1 else None


def same_number(found: Decimal | None, wanted: Decimal) -> bool:
    """Return exact equality as numbers: ``18``, ``18.0`` and ``$18`` are one; nothing found is never right."""
    return found is not None and found == wanted


def _ascii(text: str) -> str:
    """``text`` with the minus sign that typesetters use as the one that keyboards have."""
    return text.replace("\u2212", "-")


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(_MARKS.sub("", text))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
