"""Matching one corpus against another, kind by kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.audit.match import HashIndex, Shared, bands, jaccard, signatures
from limbeck.data.audit.text import chunks, grams, hash_texts, mix, normalised
from limbeck.data.rows import Row

__all__ = ["KINDS", "IndexedRows", "Kind", "Match", "Matcher", "opening"]

Kind = Literal["exact", "normalised", "field", "ngram", "near", "lines"]
KINDS: tuple[Kind, ...] = ("exact", "normalised", "field", "ngram", "near", "lines")

Hashes = NDArray[np.uint64]
Index = NDArray[np.int64]
Floats = NDArray[np.float64]

_LINES = 3  # a text of fewer lines is not verse
_LINE_WORDS = 4  # shorter lines are refrains and stage directions
_EXCERPT = 120
_SEARCHED = 200_000  # characters in which the excerpt of a shared run is looked for


@dataclass(frozen=True)
class IndexedRows:
    """Rows laid out as texts, one for each field.

    Attributes:
        rows: the rows.
        texts: field after field, row after row.
        fields: texts of each row.
        wholes: (n,) hash of each text.
        words: (n,) its length in words.
        least_words: texts of fewer words are not compared.
    """

    rows: Sequence[Row]
    texts: Sequence[str]
    fields: int
    wholes: Hashes
    words: Index
    least_words: int

    @classmethod
    def of(cls, rows: Sequence[Row], fields: Sequence[str], least_words: int) -> IndexedRows:
        """Lay out the ``fields`` of ``rows`` and hash every text."""
        texts = [str(row.fields.get(field) or "") for row in rows for field in fields]
        hashed = [hash_texts(some) for _, some in chunks(texts)]
        wholes = np.concatenate([h.wholes for h in hashed])
        return cls(rows, texts, len(fields), wholes, np.concatenate([h.lengths for h in hashed]), least_words)

    @property
    def too_short(self) -> int:
        """Texts that hold something, but too few words to be compared."""
        return int(((self.words > 0) & (self.words < self.least_words)).sum())

    @property
    def compared(self) -> Index:
        """Texts long enough to be compared."""
        return np.flatnonzero(self.words >= self.least_words)

    def row_hashes(self) -> tuple[Hashes, Index]:
        """Hash of each whole row, whatever the order of its fields, and the row; rows too short are left out."""
        hashes = mix(self.wholes).reshape(-1, self.fields).sum(axis=1, dtype=np.uint64)
        kept = np.flatnonzero(self.words.reshape(-1, self.fields).sum(axis=1) >= self.least_words)
        return hashes[kept], kept

    def row_texts(self, row: int) -> tuple[str, ...]:
        """Return texts of a row, field by field."""
        return tuple(self.texts[row * self.fields : (row + 1) * self.fields])

    def pieces(self) -> Iterator[tuple[Index, list[str]]]:
        """Yield chunks of the texts that are compared, with their numbers."""
        kept = self.compared
        for at, some in chunks([self.texts[i] for i in kept]):
            yield kept[at : at + len(some)], list(some)


@dataclass(frozen=True, slots=True)
class Match:
    """A row and the row of the other corpus that shares most with it, by numbers; see ``audit.Finding``."""

    kind: Kind
    row: int
    other: int
    share: float
    count: int
    others: int
    text: int
    other_text: int
    ngram_words: int

    def excerpt(self, mine: IndexedRows, theirs: IndexedRows) -> str:
        """Return a shared run of words or line, else how the shared text begins."""
        text, other = mine.texts[self.text], theirs.texts[self.other_text]
        if self.kind == "ngram":
            found = _shared_run(text[:_SEARCHED], other[:_SEARCHED], self.ngram_words)
        elif self.kind == "lines":
            found = _shared_line(text, other)
        else:
            found = ""
        return opening(found or text)


def opening(text: str) -> str:
    """Return how a text begins, on one line."""
    return " ".join(text[:_SEARCHED].split())[:_EXCERPT]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", normalised(text))


def _shared_line(a: str, b: str) -> str:
    """Return the first line of ``a`` of some words that stands in ``b``, or nothing."""
    there = {"".join(_words(line)) for line in b.split("\n")}
    cut = ((line, _words(line)) for line in a.split("\n"))
    return next((line for line, words in cut if len(words) >= _LINE_WORDS and "".join(words) in there), "")


def _shared_run(a: str, b: str, n: int) -> str:
    """Return the first run of ``n`` words of ``a`` that stands in ``b``, or nothing."""
    ours, theirs = _words(a), _words(b)
    there = {tuple(theirs[i : i + n]) for i in range(len(theirs) - n + 1)}
    runs = (ours[i : i + n] for i in range(len(ours) - n + 1))
    return " ".join(next((run for run in runs if tuple(run) in there), []))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of texts with what they share."""

    left: Index
    right: Index
    share: Floats
    count: Index

    def where(self, kept: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.left[kept], self.right[kept], self.share[kept], self.count[kept])


Held = tuple[Hashes, Index]
"""Hashes and the text that holds each."""


class Matcher:
    """A corpus, indexed by whatever ``kinds`` need.

    Args:
        theirs: usually evaluation rows.
        kinds: what to look for.
        ngram_words: words of a shared run.
        ngram_share: share of the shorter text's runs from which a pair is told.
        jaccard: similarity from which a pair is told.
        shingle_words: words of the runs that near-duplicates are compared by.
        shared_lines: lines from which a pair is told.
    """

    def __init__(
        self,
        theirs: IndexedRows,
        kinds: Sequence[Kind],
        *,
        ngram_words: int,
        ngram_share: float,
        jaccard: float,
        shingle_words: int,
        shared_lines: int,
    ) -> None:
        self.theirs, self.kinds = theirs, tuple(kinds)
        self.ngram_words, self.ngram_share, self.jaccard = ngram_words, ngram_share, jaccard
        self.shingle_words, self.shared_lines = shingle_words, shared_lines
        self._touched: set[int] = set()
        self._holds: dict[Kind, Callable[[Index, list[str]], Held]] = {
            kind: holds
            for kind, holds in (("ngram", self._grams), ("near", self._bands), ("lines", self._lines))
            if kind in self.kinds
        }
        held: dict[Kind, list[Held]] = {kind: [] for kind in self._holds}
        for numbers, texts in theirs.pieces() if held else ():
            for kind, holds in self._holds.items():
                held[kind].append(holds(numbers, texts))
        self._index = {kind: HashIndex(*_joined(some)) for kind, some in held.items()}

    @property
    def touched(self) -> int:
        """Rows of the indexed corpus that any match so far shares something with."""
        return len(self._touched)

    # -- what a text holds ----------------------------------------------------------------------------------------

    def _grams(self, numbers: Index, texts: list[str]) -> Held:
        hashes, owner = grams(hash_texts(texts), self.ngram_words)
        return hashes, numbers[owner]

    def _shingles(self, texts: list[str]) -> Held:
        return grams(hash_texts(texts), self.shingle_words, short=True)

    def _bands(self, numbers: Index, texts: list[str]) -> Held:
        return bands(signatures(*self._shingles(texts), len(texts)), numbers)

    def _lines(self, numbers: Index, texts: list[str]) -> Held:
        lines: list[str] = []
        owner: list[int] = []
        for number, text in zip(numbers.tolist(), texts, strict=True):
            some = [line for line in text.split("\n") if line.strip()]
            if len(some) >= _LINES:
                lines += some
                owner += [number] * len(some)
        hashed = hash_texts(lines)
        kept = hashed.lengths >= _LINE_WORDS
        return hashed.wholes[kept], np.array(owner, dtype=np.int64)[kept]

    # -- matching -------------------------------------------------------------------------------------------------

    def find(self, mine: IndexedRows, *, earlier: bool = False) -> list[Match]:
        """Return the best match of each row and kind, rows in order.

        Args:
            mine: usually training rows.
            earlier: ``mine`` is the indexed corpus itself: match rows with earlier ones only. For ``near`` alone: equal
                rows of one set are found by ``Repeats``.
        """
        out = self._equal(mine)
        pieces: dict[Kind, list[_Pairs]] = {kind: [] for kind in self._holds}
        for numbers, texts in mine.pieces() if pieces else ():
            for kind, holds in self._holds.items():
                hashes, owner = holds(numbers, texts)
                shared = self._index[kind].pairs(hashes, owner)
                pieces[kind].append(self._judge(kind, shared, hashes, owner, mine, earlier))
        for kind, some in pieces.items():
            out += self._best(kind, some, mine)
        return sorted(out, key=lambda m: (m.row, KINDS.index(m.kind)))

    def _judge(self, kind: Kind, s: Shared, hashes: Hashes, owner: Index, mine: IndexedRows, earlier: bool) -> _Pairs:
        """Keep the pairs that share enough."""
        if earlier:
            kept = s.right // self.theirs.fields < s.left // mine.fields
            s = Shared(s.left[kept], s.right[kept], s.count[kept])
        if kind == "near":
            return self._near(s, mine)
        ours = _distinct_sizes(hashes, owner, s.left)
        if kind == "lines":
            return _Pairs(s.left, s.right, s.count / ours, s.count).where(s.count >= self.shared_lines)
        share = s.count / np.minimum(ours, self._index[kind].sizes[s.right])
        return _Pairs(s.left, s.right, share, s.count).where(share >= self.ngram_share)

    def _near(self, s: Shared, mine: IndexedRows) -> _Pairs:
        """Candidates by their true similarity."""

        @lru_cache(maxsize=4096)
        def ours(number: int) -> Hashes:
            return self._shingles([mine.texts[number]])[0]

        @lru_cache(maxsize=4096)
        def theirs(number: int) -> Hashes:
            return self._shingles([self.theirs.texts[number]])[0]

        pairs = zip(s.left.tolist(), s.right.tolist(), strict=True)
        share = np.array([jaccard(ours(a), theirs(b)) for a, b in pairs], dtype=np.float64)
        return _Pairs(s.left, s.right, share, s.count).where(share >= self.jaccard)

    def _best(self, kind: Kind, some: list[_Pairs], mine: IndexedRows) -> list[Match]:
        """Return the pair that shares most, of each row."""
        left, right, share, count = (
            np.concatenate([getattr(p, name) for p in some]) if some else np.zeros(0, np.int64)
            for name in ("left", "right", "share", "count")
        )
        rows, others = left // mine.fields, right // self.theirs.fields
        self._touched.update(others.tolist())
        order = np.lexsort((right, -count, -share, rows))
        out = []
        for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1) if len(order) else ():
            i = int(group[0])
            sharing = len(np.unique(others[group]))
            numbers = (int(rows[i]), int(others[i]), float(share[i]), int(count[i]), sharing)
            out.append(Match(kind, *numbers, int(left[i]), int(right[i]), self.ngram_words))
        return out

    @cached_property
    def _wholes(self) -> HashIndex:
        """Rows of the indexed corpus by the hash of all their fields."""
        return HashIndex(*self.theirs.row_hashes())

    @cached_property
    def _texts(self) -> HashIndex:
        """Its texts that are long enough, by the hash of the whole text."""
        kept = self.theirs.compared
        return HashIndex(self.theirs.wholes[kept], kept)

    def _equal(self, mine: IndexedRows) -> list[Match]:
        """Rows that are equal as a whole, then rows that share a field."""
        out: list[Match] = []
        whole: set[tuple[int, int]] = set()
        if {"exact", "normalised", "field"} & set(self.kinds):
            shared = self._wholes.pairs(*mine.row_hashes())
            whole = set(zip(shared.left.tolist(), shared.right.tolist(), strict=True))
        found: dict[tuple[Kind, int], list[int]] = {}
        for a, b in sorted(whole):
            kind: Kind = "exact" if mine.row_texts(a) == self.theirs.row_texts(b) else "normalised"
            found.setdefault((kind, a), []).append(b)
        for (kind, a), others in found.items():
            if kind in self.kinds and (kind == "exact" or ("exact", a) not in found):
                self._touched.update(others)
                at = a * mine.fields, others[0] * self.theirs.fields
                out.append(Match(kind, a, others[0], 1.0, mine.fields, len(others), *at, self.ngram_words))
        if "field" in self.kinds and mine.fields + self.theirs.fields > 2:
            out += self._fields(mine, whole)
        return out

    def _fields(self, mine: IndexedRows, whole: set[tuple[int, int]]) -> list[Match]:
        """Rows that share some of their fields with a row, wherever these stand in it."""
        here = mine.compared
        s = self._texts.pairs(mine.wholes[here], here)
        shared: dict[tuple[int, int], tuple[int, set[int]]] = {}
        for a, b in zip(s.left.tolist(), s.right.tolist(), strict=True):
            rows = a // mine.fields, b // self.theirs.fields
            if rows not in whole:
                shared.setdefault(rows, (b, set()))[1].add(a)
        if not shared:
            return []
        left, right, count = zip(*((min(texts), b, len(texts)) for b, texts in shared.values()), strict=True)
        counts = np.array(count, dtype=np.int64)
        pairs = _Pairs(np.array(left, dtype=np.int64), np.array(right, dtype=np.int64), counts / mine.fields, counts)
        return self._best("field", [pairs], mine)


def _joined(some: list[Held]) -> Held:
    hashes = [h for h, _ in some] or [np.zeros(0, np.uint64)]
    return np.concatenate(hashes), np.concatenate([o for _, o in some] or [np.zeros(0, np.int64)])


def _distinct_sizes(hashes: Hashes, owner: Index, asked: Index) -> Index:
    """Return the number of distinct hashes that each of ``asked`` holds."""
    if not asked.size:
        return asked
    held = np.isin(owner, np.unique(asked))
    index = HashIndex(hashes[held], owner[held])
    return index.sizes[asked]
