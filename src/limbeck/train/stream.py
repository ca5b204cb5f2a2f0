"""What the loop asks of data, and how it names rows and counts tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from limbeck.data.batch import IGNORE, Batch, PairBatch

__all__ = ["Stream", "derive", "name_rows", "parts", "tokens"]

B_co = TypeVar("B_co", covariant=True)


class Stream(Protocol[B_co]):
    """An endless run of micro-batches; each is a pure function of its index, so a resume needs no state."""

    @property
    def per_epoch(self) -> int:
        """Micro-batches in one pass over the data; 0 where there is no such thing."""

    def at(self, index: int) -> B_co:
        """Return micro-batch ``index``, on the CPU."""


def derive(seed: int, *what: object) -> int:
    """Return a 63-bit seed for one purpose: the same for the same arguments, unrelated for others."""
    text = ":".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def parts(batch: Any) -> tuple[Batch, ...]:
    """Return the plain batches within a batch: itself, or the two sides of pairs."""
    return (batch.chosen, batch.rejected) if isinstance(batch, PairBatch) else (batch,)


def tokens(batch: Any) -> tuple[int, int]:
    """Return real tokens and target tokens of a batch."""
    real = sum(int(b.real.sum()) for b in parts(batch))
    target = sum(int((b.next_token_labels() != IGNORE).sum()) for b in parts(batch))
    return real, target


def name_rows(batches: Iterable[Any], most: int = 12) -> str:
    """Return data rows of some batches, as words for a message: ``rows 3, 17 and 40``."""
    rows = sorted({int(r) for batch in batches for b in parts(batch) for r in b.row_ids.flatten().tolist() if r >= 0})
    shown = [str(r) for r in rows[:most]]
    if len(rows) > most:
        shown.append(f"{len(rows) - most} more")
    if len(shown) < 2:
        return f"row {shown[0]}" if shown else "no row"
    return f"rows {', '.join(shown[:-1])} and {shown[-1]}"
