"""Toy corpora: small data of the project's own making for every task, drawn from a seed with no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from limbeck.data.rows import Row, Rows
from limbeck.data.toy.answers import instructions, preferences, qa, sums
from limbeck.data.toy.judgements import paraphrase, sentiment, sentiment5
from limbeck.data.toy.stories import stories
from limbeck.data.toy.verse import verse
from limbeck.errors import DataError, nearest

__all__ = ["TOYS", "toy_rows"]

_TOYS: dict[str, tuple[Callable[[Random], Iterator[dict[str, Any]]], int]] = {
    "stories": (stories, 2000),
    "verse": (verse, 400),
    "sentiment": (sentiment, 2000),
    "sentiment5": (sentiment5, 2000),
    "paraphrase": (paraphrase, 2000),
    "qa": (qa, 2000),
    "instructions": (instructions, 2000),
    "preferences": (preferences, 2000),
    "sums": (sums, 2000),
}

TOYS: tuple[str, ...] = tuple(_TOYS)
"""Names of the corpora, as in ``toy:NAME``."""

_PATIENCE = 5000  # draws without a new row before a corpus counts as exhausted


def toy_rows(name: str, seed: int = 0, size: int | None = None) -> Rows:
    """Draw a corpus.

    Equal arguments give equal rows on every platform; a larger ``size`` only adds rows at the end. No row comes
    twice.

    Args:
        name: one of ``TOYS``. Fields: stories and verse ``text``; sentiment ``sentence, label`` (0 or 1), sentiment5
            the same with 0 to 4; paraphrase ``sentence1, sentence2, is_duplicate``; qa and sums ``question, answer``;
            instructions ``instruction, input, output``; preferences ``prompt, chosen, rejected``.
        seed: another seed gives other rows (of qa: other questions about the same small world).
        size: rows wanted; None: 400 poems, 2,000 of everything else.

    Raises:
        DataError: no such corpus, or it does not have that many different rows.
    """
    if name not in _TOYS:
        raise DataError(f"there is no toy corpus '{name}', only {', '.join(TOYS)}{nearest(name, TOYS)}")
    make, usual = _TOYS[name]
    wanted = usual if size is None else size
    if wanted < 1:
        raise DataError(f"a toy corpus of {wanted} rows is empty; ask for at least 1")
    source = f"toy:{name}"
    drawn = make(Random(f"{name}:{seed}"))  # a text seed is hashed with sha512, alike everywhere
    seen: set[tuple[Any, ...]] = set()
    rows: list[Row] = []
    repeats = 0
    while len(rows) < wanted:
        fields = next(drawn, None)
        if fields is None or repeats >= _PATIENCE:
            raise DataError(f"{source} has only about {len(rows)} different rows; ask for no more than that")
        key = tuple(fields.values())
        if key in seen:
            repeats += 1
            continue
        seen.add(key)
        repeats = 0
        rows.append(Row(f"{name}-{seed}:{len(rows)}", fields))
    return Rows.of(rows, source)
