"""Differences between two texts: edit distance, numbers and names."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["edit_distance", "names", "numbers", "relative_edit_distance", "words"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?:;\"“”(]\s*$")


def words(text: str) -> list[str]:
    """Return the words of ``text`` in folded case, without punctuation."""
    return [word.casefold() for word in _WORD.findall(text)]


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn ``a`` into ``b`` (Levenshtein 1966)."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def relative_edit_distance(a: str, b: str) -> float:
    """Return the edit distance in words over the longer text's words: 0 for equal words, 1 where none is shared."""
    left, right = words(a), words(b)
    longest = max(len(left), len(right))
    return edit_distance(left, right) / longest if longest else 0.0


def numbers(text: str) -> frozenset[str]:
    """Return the numbers of ``text`` in digits; ``1,000`` and ``1000`` are one, and so are ``2`` and ``2.0``."""
    out = set()
    for found in _NUMBER.findall(text):
        plain = re.sub(r",(?=\d{3}(?:\D|$))", "", found).replace(",", ".")
        whole, dot, rest = plain.partition(".")
        if "." in rest:  # a version or a date, not a number
            out.add(plain)
            continue
        rest = rest.rstrip("0") if dot else ""
        out.add((whole.lstrip("0") or "0") + (f".{rest}" if rest else ""))
    return frozenset(out)


def names(text: str) -> frozenset[str]:
    """Return the words of ``text`` that seem to be names, in folded case.

    A name has a capital letter and does not begin a sentence, or has a capital letter after its first letter
    (``iPhone``, ``NASA``) wherever it stands. ``I`` and its contractions are no names.
    """
    out = set()
    for found in _WORD.finditer(text):
        word, before = found.group().replace("’", "'"), text[: found.start()]
        if word.partition("'")[0] == "I":
            continue
        word = word.removesuffix("'s")
        begins = not before.strip() or _SENTENCE_END.search(before) is not None
        if any(c.isupper() for c in word[1:]) or (word[0].isupper() and not begins):
            out.add(word.casefold())
    return frozenset(out)
