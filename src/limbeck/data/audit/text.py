"""Texts as 64-bit hashes of words, n-grams, lines and wholes, a chunk of text at a time in numpy.

A text is compared as letters and digits alone: compatibility forms and case are folded, punctuation and white space
fall away. Words are runs of them; in scripts written without spaces every character is a word.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hashed", "chunks", "grams", "hash_texts", "mix", "normalised", "odd_numbers"]

Hashes = NDArray[np.uint64]
Index = NDArray[np.int64]

_CHUNK = 1 << 20
"""Characters hashed together: the arrays of a chunk stay within a few tens of megabytes, whatever the set's size."""

_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Thai and Lao, Khmer, kana, ideographs: no spaces between words."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """Some texts as hashes.

    Attributes:
        words: (w,) hash of each word, text after text.
        owner: (w,) which text it stands in.
        lengths: (n,) words of each text.
        wholes: (n,) hash of each text's letters and digits, whatever stands between them; 0 for a text without any.
    """

    words: Hashes
    owner: Index
    lengths: Index
    wholes: Hashes


def normalised(text: str) -> str:
    """Return ``text`` in compatibility composition (NFKC) and folded case; punctuation and white space still stand."""
    return unicodedata.normalize("NFKC", text).casefold()


def mix(x: Hashes) -> Hashes:
    """Spread every bit over the whole word (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def odd_numbers(count: int, seed: int) -> Hashes:
    """Return (count,) odd 64-bit numbers, the same in every process."""
    return np.random.default_rng(seed).integers(0, 1 << 64, count, dtype=np.uint64) | np.uint64(1)


@cache
def _kinds() -> NDArray[np.uint8]:
    """(0x110000,) what each code point is: 0 a separator, 1 part of a word, 2 a word by itself."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isalnum() or unicodedata.category(character)[0] == "M":
            table[code] = 1
    for first, last in _UNSPACED:
        table[first : last + 1] *= 2
    return table


@cache
def _powers(longest: int) -> Hashes:
    """(longest,) powers of an odd base, modulo 2^64."""
    return np.multiply.accumulate(np.full(longest, 0x9E3779B97F4A7C15, dtype=np.uint64))


def hash_texts(texts: Sequence[str]) -> Hashed:
    """Hash all of ``texts`` at once; see ``chunks`` for many."""
    plain = [normalised(text) for text in texts]
    joined = "\n".join(plain).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, dtype="<u4")
    kinds = _kinds()[codes]
    at = np.flatnonzero(kinds)
    kinds, letters = kinds[at], codes[at].astype(np.uint64) + np.uint64(1)
    ends = np.cumsum([len(text) + 1 for text in plain], dtype=np.int64)
    bounds = np.concatenate([[0], np.searchsorted(at, ends)]).astype(np.int64)  # letters of each text
    first = np.ones(len(at), dtype=np.bool_)  # a letter that begins a word
    first[1:] = (np.diff(at) != 1) | (kinds[1:] == 2) | (kinds[:-1] == 2)
    starts = np.flatnonzero(first)
    place = np.arange(len(at)) - np.repeat(starts, np.diff(np.append(starts, len(at))))
    words = _sums(letters * _table(place), starts)
    place = np.arange(len(at)) - np.repeat(bounds[:-1], np.diff(bounds))
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * _table(place), dtype=np.uint64)])
    wholes = mix(running[bounds[1:]] - running[bounds[:-1]])
    lengths = np.diff(np.searchsorted(starts, bounds))
    return Hashed(mix(words), np.repeat(np.arange(len(texts)), lengths), lengths, wholes)


def _table(place: Index) -> Hashes:
    """Power for each place; the table grows by doubling, so that few are ever made."""
    longest = int(place.max()) + 1 if place.size else 1
    return _powers(1 << (longest - 1).bit_length())[place]


def _sums(values: Hashes, starts: Index) -> Hashes:
    return np.add.reduceat(values, starts) if starts.size else np.zeros(0, np.uint64)


def chunks(texts: Sequence[str], size: int = _CHUNK) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield whole texts of about ``size`` characters together, with the index of the first."""
    at = 0
    while at < len(texts):
        end, held = at, 0
        while end < len(texts) and (end == at or held + len(texts[end]) <= size):
            held += len(texts[end])
            end += 1
        yield at, texts[at:end]
        at = end


def grams(hashed: Hashed, n: int, *, short: bool = False) -> tuple[Hashes, Index]:
    """Return every run of ``n`` words within one text.

    Args:
        hashed: the texts.
        n: words of a run.
        short: a text of fewer words is one run by itself; else it has none.

    Returns:
        Hashes (g,) and owners (g,), owners ascending.
    """
    many = max(len(hashed.words) - n + 1, 0)
    found = np.zeros(many, dtype=np.uint64)
    for j, factor in enumerate(odd_numbers(n, n)):
        found += hashed.words[j : j + many] * factor
    kept = hashed.owner[:many] == hashed.owner[n - 1 : n - 1 + many]
    hashes, owner = mix(found[kept]), hashed.owner[:many][kept]
    if short:
        few = np.flatnonzero((hashed.lengths > 0) & (hashed.lengths < n))
        hashes, owner = np.concatenate([hashes, hashed.wholes[few]]), np.concatenate([owner, few])
        order = np.argsort(owner, kind="stable")
        hashes, owner = hashes[order], owner[order]
    return hashes, owner
