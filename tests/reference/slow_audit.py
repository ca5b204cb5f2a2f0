"""Overlap of texts, the slow and obvious way: strings, sets and loops."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["letters", "longest_copied", "near", "shared_lines", "shared_runs", "words"]


def words(text: str) -> list[str]:
    """Runs of letters and digits of the folded text."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def letters(text: str) -> str:
    return "".join(words(text))


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    cut = words(text)
    return {tuple(cut[i : i + n]) for i in range(len(cut) - n + 1)}


def shared_runs(a: str, b: str, n: int) -> int:
    return len(runs(a, n) & runs(b, n))


def near(a: str, b: str, n: int) -> float:
    """Jaccard similarity of the sets of n-word runs; a shorter text is one run."""
    one, other = (runs(t, n) or {(letters(t),)} for t in (a, b))
    return len(one & other) / len(one | other)


def shared_lines(a: str, b: str, least_words: int = 4) -> int:
    def lines(text: str) -> set[str]:
        return {letters(line) for line in text.split("\n") if len(words(line)) >= least_words}

    return len(lines(a) & lines(b))


def longest_copied(ids: Sequence[int], texts: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest run of ``ids`` that stands in one of ``texts``."""
    best = 0
    for text in texts:
        for i in range(len(ids)):
            for j in range(len(text)):
                n = 0
                while i + n < len(ids) and j + n < len(text) and ids[i + n] == text[j + n]:
                    n += 1
                best = max(best, n)
    return best
