"""Attention patterns as values: which earlier positions a position sees, and what that costs.

Every pattern is a set of distances to look back, and a few first positions (sinks) that are always seen. From these two
follow the mask, the keys that a query reads, their number, and the slots of a key/value cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.config import Config
from limbeck.kernels.sparse import Reach

__all__ = ["AnyPattern", "Causal", "LogSparse", "Pattern", "Sliding", "Strided", "hybrid_layers", "picture"]


class Pattern(Config):
    """Base of every pattern. Distances are counted back from the query: 0 is the query itself.

    Attributes:
        sinks: first positions that are always seen.
    """

    sinks: int = Field(0, ge=0, description="first positions that are always seen (Xiao et al. 2023)")

    @abstractmethod
    def bands(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return ranges [low, high) of the distances seen in ``length`` tokens: ascending, not touching, below it."""

    @abstractmethod
    def sees_distance(self, distance: Tensor) -> Tensor:
        """Return a bool tensor: is a key at this ``distance`` >= 0 seen, sinks aside? Elementwise, for block masks."""

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Broadcast two tensors of positions to a bool tensor: may ``query`` see ``key``?"""
        return (key <= query) & (self.sees_distance(query - key) | (key < self.sinks))

    def is_causal(self, length: int) -> bool:
        """Return whether sequences of ``length`` tokens see all of their past, so that no mask is needed."""
        return self.bands(length)[0][1] >= length - self.sinks  # every distance that is missing is one to a sink

    def reach(self, length: int) -> Reach:
        """Return what the sparse kernels need to know, for documents of at most ``length`` tokens."""
        return Reach(min(self.sinks, length), self.bands(length), self.sink_reach)

    @property
    def sink_reach(self) -> int:
        """Largest distance at which a sink appears to a query; 0: its true distance."""
        return 0

    @property
    def unbounded(self) -> bool:
        """Whether no key appears farther than the cache is long, so that text of any length can be read."""
        return False

    @property
    def rolls(self) -> bool:
        """Whether the cache forgets tokens that no later query sees."""
        return False

    def slots(self, capacity: int) -> int:
        """Return the cache slots needed to decode ``capacity`` tokens."""
        return capacity

    def slot(self, position: Tensor) -> Tensor:
        """Return the cache slot of a position."""
        return position

    def kept(self, position: Tensor, length: Tensor) -> Tensor:
        """Return which positions of a sequence of ``length`` a later one can still see."""
        return position < length

    def key_slots(self, position: Tensor, capacity: int) -> Tensor | None:
        """Return the cache slots that one query at each ``position`` (n,) reads, (n, most), -1 where there is none.

        None: all slots written so far, which are the first min(position + 1, slots). ``capacity``: tokens of the cache.
        """
        distances = _distances(self, capacity).to(position.device)
        back = position[:, None] - distances
        first = torch.arange(self.sinks, device=position.device).expand(position.shape[0], -1)
        back = back.masked_fill(back < self.sinks, -1)
        return torch.cat((back, first.masked_fill(first > position[:, None], -1)), dim=1)

    def pairs(self, length: int) -> int:
        """Return how many (query, key) pairs a sequence of ``length`` tokens has."""
        first = min(self.sinks, length)
        total = first * (first + 1) // 2 + (length - first) * first
        for low, high in self.bands(length):
            most, least = length - self.sinks - low, max(length - self.sinks - high, 0)
            total += (most * (most + 1) - least * (least + 1)) // 2 if most > 0 else 0
        return total

    def keys_per_query(self, length: int) -> float:
        """Return the mean number of keys that a query of a sequence of ``length`` tokens reads."""
        return self.pairs(length) / length


class Causal(Pattern):
    """Every earlier position and itself."""

    kind: Literal["causal"] = "causal"
    sinks: Literal[0] = Field(0, description="every position is seen anyway")

    def bands(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return all distances."""
        return ((0, length),)

    def sees_distance(self, distance: Tensor) -> Tensor:
        """Return true."""
        return distance >= 0

    def key_slots(self, position: Tensor, capacity: int) -> Tensor | None:
        """Return all slots."""
        return None


class Sliding(Pattern):
    """Itself, the ``window - 1`` positions before it, and the sinks (Xiao et al. 2023, StreamingLLM).

    With ``sink_distance="true"`` positions stay absolute. With ``"cache"`` a sink appears at most as far away as the
    cache is long, as in StreamingLLM (section 3.2), so that no distance grows past window + sinks and text of any
    length can be read; learned positions go round in a circle instead (``model.positions.circled``, an approximation).
    Either way a rolling cache gives what one full forward under the same pattern gives (I13).
    """

    kind: Literal["sliding"] = "sliding"
    window: int = Field(ge=1, description="positions seen, the current one included")
    sink_distance: Literal["true", "cache"] = Field(
        "true", description="distance at which sinks appear: true, or at most the cache's length (text of any length)"
    )

    def bands(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return the window."""
        return ((0, min(self.window, length)),)

    def sees_distance(self, distance: Tensor) -> Tensor:
        """Return whether the distance lies within the window."""
        return distance < self.window

    @property
    def sink_reach(self) -> int:
        """The last place of the cache, where sinks appear by the cache."""
        return self.sinks + self.window - 1 if self.sinks and self.sink_distance == "cache" else 0

    @property
    def unbounded(self) -> bool:
        """Where sinks appear by the cache."""
        return self.sink_distance == "cache"

    @property
    def rolls(self) -> bool:
        """It does."""
        return True

    def slots(self, capacity: int) -> int:
        """Return the window and the sinks, no more."""
        return min(capacity, self.sinks + self.window)

    def slot(self, position: Tensor) -> Tensor:
        """Return the slot of a position: sinks stay, the rest rolls."""
        rolling = self.sinks + (position - self.sinks) % self.window
        return position.where(position < self.sinks, rolling)

    def kept(self, position: Tensor, length: Tensor) -> Tensor:
        """Return the window and the sinks."""
        return (position < length) & ((position < self.sinks) | (position >= length - self.window))

    def key_slots(self, position: Tensor, capacity: int) -> Tensor | None:
        """Return all slots: each holds a sink or a token of the window."""
        return None


class LogSparse(Pattern):
    """Itself, a local window, and positions at distances 2^k (Li et al. 2019, LogTrans, section 4.2).

    ``restart`` repeats the whole set of distances from every multiple of ``restart`` on (their restart attention, with
    subsequences of that length): keys per query then grow with length / restart, so it is to be set in proportion to
    the context.
    """

    kind: Literal["log_sparse"] = "log_sparse"
    window: int = Field(32, ge=1, description="nearest positions seen, the current one included")
    restart: int = Field(0, ge=0, description="distance after which the set of distances begins again; 0: never")

    @model_validator(mode="after")
    def _fits(self) -> LogSparse:
        if 0 < self.restart <= self.window:
            raise ValueError(f"a restart after {self.restart} tokens must lie beyond the window of {self.window}")
        return self

    def bands(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return the window and single distances beyond, merged where they touch."""
        return _log_bands(self.window, self.restart, length)

    def sees_distance(self, distance: Tensor) -> Tensor:
        """Return whether the distance lies within the window or is a power of two, of what is left after restarts."""
        d = distance % self.restart if self.restart else distance
        return (d < self.window) | ((d > 0) & ((d & (d - 1)) == 0))


class Strided(Pattern):
    """Itself, a local window, and every ``stride``-th position before (Child et al. 2019, section 4.3).

    With ``window=1`` and ``keys`` this is dilated sliding attention (Beltagy et al. 2020, Longformer, section 3.1).
    """

    kind: Literal["strided"] = "strided"
    window: int = Field(32, ge=1, description="nearest positions seen, the current one included")
    stride: int = Field(32, ge=2, description="distance between two far positions")
    keys: int = Field(0, ge=0, description="most far positions seen; 0: all, so that keys grow with the length")

    def bands(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return the window and multiples of the stride, merged where they touch."""
        end = min(length, self.stride * self.keys + 1) if self.keys else length
        far = (d for d in range(self.stride, end, self.stride) if d >= self.window)
        return _merged(((0, min(self.window, length)), *((d, d + 1) for d in far)))

    def sees_distance(self, distance: Tensor) -> Tensor:
        """Return whether the distance lies within the window or is a multiple of the stride."""
        far = distance % self.stride == 0
        if self.keys:
            far = far & (distance <= self.stride * self.keys)
        return (distance < self.window) | far


AnyPattern = Annotated[Causal | LogSparse | Sliding | Strided, Field(discriminator="kind")]


@cache
def _log_bands(window: int, restart: int, length: int) -> tuple[tuple[int, int], ...]:
    period = restart or length
    once = [(0, window)]
    d = 1
    while d < period:
        if d >= window:
            once.append((d, d + 1))
        d *= 2
    found = [(m + low, m + min(high, period)) for m in range(0, length, period) for low, high in once]
    return _merged(tuple((low, min(high, length)) for low, high in found if low < length))


def _merged(bands: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Join ascending ranges that touch."""
    out = [bands[0]]
    for low, high in bands[1:]:
        if low <= out[-1][1]:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


@cache
def _distances(pattern: Pattern, length: int) -> Tensor:
    """(n,) int64 distances of a pattern, ascending."""
    return torch.cat([torch.arange(low, high) for low, high in pattern.bands(length)])


def hybrid_layers(layers: int, first: int = 0, last: int = 0, every: int = 0) -> tuple[int, ...]:
    """Return which of ``layers`` stay dense: the ``first``, the ``last``, and every ``every``-th (0: none of these)."""
    chosen = set(range(min(first, layers))) | set(range(max(layers - last, 0), layers))
    if every:
        chosen |= set(range(every - 1, layers, every))
    return tuple(sorted(chosen))


def picture(pattern: Pattern, length: int, cells: int = 24) -> str:
    """Draw which keys (columns) the queries (rows) of ``length`` tokens see, as lines of text.

    A cell stands for many queries and keys: ``#`` most of its past pairs are seen, ``+`` some, ``.`` none.
    """
    cells = min(cells, length)
    edges = [length * i // cells for i in range(cells + 1)]
    lines = []
    for row in range(cells):
        low, high = edges[row], edges[row + 1]
        queries = torch.linspace(low, high - 1, min(8, high - low)).long()[:, None]
        seen = pattern.allows(queries, torch.arange(high))
        past = torch.arange(high) <= queries
        shares = [(seen[:, a:b].sum() / past[:, a:b].sum()).item() for a, b in _pairs(edges[: row + 2])]
        lines.append("".join("#" if s > 0.5 else "+" if s > 0 else "." for s in shares))
    return "\n".join(lines)


def _pairs(edges: Collection[int]) -> list[tuple[int, int]]:
    listed = list(edges)
    return list(zip(listed[:-1], listed[1:], strict=True))
