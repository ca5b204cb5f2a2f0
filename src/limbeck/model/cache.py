"""Key/value cache of fixed size for token-by-token decoding."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.model.cache_store import KVKind, Store
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern, Causal

__all__ = ["CachePool", "KVCache", "KVKind", "KVKinds", "Slots"]

KVKinds = KVKind | tuple[KVKind, KVKind]
"""One kind for both, or one for keys and one for values."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Where this call's tokens go in one pattern's ring, and what stands there; shared by the layers of that pattern.

    Attributes:
        write: (B, T) slot of each new token; the last slot of the buffer is a bin for what is not kept.
        positions: (B, S) position held by each slot after the write, -1 where empty.
        before: (B, S) the same before the write.
        leading: every row fills the first T slots in order, so that a copy serves.
    """

    write: Tensor
    positions: Tensor
    before: Tensor
    leading: bool = False


class KVCache:
    """Keys and values of ``batch_size`` sequences of at most ``capacity`` tokens, allocated once.

    Rows grow independently (ragged prompts): ``lengths`` (B,) counts the real tokens of each. A rolling pattern keeps
    only the slots it can still see.

    Attributes:
        lengths: (B,) tokens held of each row.
        longest: most of them.
        stored_keys, stored_values: as they are kept, by layer.
        stored: dtype in which both are kept one number a place; None where they differ, or numbers share a byte.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kind: KVKinds = "model",
    ) -> None:
        self.config, self.capacity, self.dtype = config, capacity, dtype
        of_keys, of_values = (kind, kind) if isinstance(kind, str) else kind
        self.stored = {"model": dtype, "int8": torch.int8, "int4": None}[of_keys] if of_keys == of_values else None
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.longest = 0
        self._held: dict[AnyPattern, Tensor] = {}
        shapes = []
        for i in range(config.layers):
            pattern = config.pattern_at(i)
            slots = pattern.slots(capacity) + 1
            shapes.append((batch_size, config.kv_heads, slots, config.head_dim))
            if pattern not in self._held:
                self._held[pattern] = torch.full((batch_size, slots), -1, dtype=torch.int64, device=device)
        self.stored_keys, self.stored_values = (Store(shapes, k, dtype, device) for k in (of_keys, of_values))

    @property
    def keys(self) -> list[Tensor]:
        """Keys of each layer as they are stored."""
        return self.stored_keys.data

    @property
    def values(self) -> list[Tensor]:
        """Values of each layer as they are stored."""
        return self.stored_values.data

    @property
    def key_scales(self) -> list[Tensor]:
        """Scales of the keys of each layer; none in the model's dtype."""
        return self.stored_keys.scales

    @property
    def value_scales(self) -> list[Tensor]:
        """Scales of the values of each layer, likewise."""
        return self.stored_values.scales

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values, and of their scales."""
        return self.stored_keys.bytes + self.stored_values.bytes

    @property
    def causal(self) -> bool:
        """Every layer keeps all tokens, each in the slot of its position."""
        return all(isinstance(p, Causal) for p in self._held)

    def held(self, pattern: AnyPattern) -> Tensor:
        """Return (B, S) position that each slot of a pattern's ring holds, -1 where empty."""
        return self._held[pattern]

    def positions(self, batch: Batch) -> Tensor:
        """Return (B, T) absolute positions of ``batch``'s tokens behind what is held; 0 on padding."""
        place = batch.real.cumsum(dim=1) - 1
        return torch.where(batch.real, self.lengths[:, None] + place, 0)

    def plan(self, batch: Batch, positions: Tensor) -> dict[AnyPattern, Slots]:
        """Reserve slots for ``batch`` and advance the lengths; call once a forward, before the layers.

        Raises:
            ValueError: a row would outgrow ``capacity``.
        """
        if self.longest + batch.ids.shape[1] > self.capacity:
            more = batch.ids.shape[1]
            raise ValueError(f"the cache holds {self.longest} of {self.capacity} tokens: {more} more do not fit")
        after = self.lengths + batch.real.sum(dim=1)
        plans: dict[AnyPattern, Slots] = {}
        for pattern, held in self._held.items():
            bin_slot = held.shape[1] - 1
            keep = batch.real & pattern.kept(positions, after[:, None])
            write = torch.where(keep, pattern.slot(positions), bin_slot)
            new = held.scatter(1, write, torch.where(keep, positions, -1))
            new[:, bin_slot] = -1
            length = batch.ids.shape[1]
            leading = self.longest == 0 and batch.plain and length <= bin_slot and pattern.is_causal(length)
            plans[pattern] = Slots(write, new, held, leading)
            self._held[pattern] = new
        self.lengths = after
        self.longest += batch.ids.shape[1]
        return plans

    def append(self, real: Tensor | None, count: int = 1) -> tuple[Tensor, dict[AnyPattern, Tensor]]:
        """Reserve slots for ``count`` tokens of every row that is ``real`` (B,) bool, None: all; as ``plan``, in place.

        Args:
            real: None where ``count`` is more than 1.
            count: more than 1 only where every pattern is causal: in a ring later tokens overwrite what earlier see.

        Returns:
            (B, count) positions of the tokens, 0 where there is none, and by pattern the (B, count) slots to write to.

        Raises:
            ValueError: a row would outgrow ``capacity``.
        """
        if self.longest + count > self.capacity:
            raise ValueError(f"the cache holds {self.longest} of {self.capacity} tokens: {count} more do not fit")
        positions = self.lengths[:, None] + torch.arange(count, device=self.lengths.device)
        if real is not None:
            positions = torch.where(real[:, None], positions, 0)
        writes = {}
        for pattern, held in self._held.items():
            write, value = pattern.slot(positions), positions
            if real is not None:
                write = torch.where(real[:, None], write, held.shape[1] - 1)
                value = torch.where(real[:, None], positions, -1)
            held.scatter_(1, write, value)
            writes[pattern] = write
        self.lengths = self.lengths + (count if real is None else real)
        self.longest += count
        return positions, writes

    def write(self, layer: int, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` and ``values`` (B, KV, T, D) of one layer at the planned slots."""
        at = None if slots.leading else slots.write
        self.stored_keys.write(layer, keys, at)
        self.stored_values.write(layer, values, at)

    def read(self, layer: int, live: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, KV, live, D) of one layer's first slots, in the model's dtype."""
        return self.stored_keys.read(layer, live), self.stored_values.read(layer, live)

    def read_slots(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, KV, n, D) of one layer at ``slots`` (B, n), in the model's dtype."""
        return self.stored_keys.read_slots(layer, slots), self.stored_values.read_slots(layer, slots)

    def select(self, rows: Tensor) -> None:
        """Reorder or repeat rows in place, as a beam search does; ``rows`` (B',) indexes the present rows."""
        self.stored_keys.select(rows)
        self.stored_values.select(rows)
        self._held = {p: h[rows] for p, h in self._held.items()}
        self.lengths = self.lengths[rows]

    def rewind(self, lengths: Tensor) -> None:
        """Forget all but the first ``lengths`` (B,) tokens of each row: what a rejected draft left behind.

        Raises:
            ValueError: a rolling pattern has overwritten what would have to come back.
        """
        for pattern, held in self._held.items():
            if held.shape[1] - 1 < self.longest:
                raise ValueError(f"a rolling cache of {held.shape[1] - 1} slots has overwritten earlier tokens")
            self._held[pattern] = held.masked_fill(held >= lengths[:, None], -1)
        self.lengths = lengths
        self.longest = int(lengths.max())


class CachePool:
    """Room for ``rows`` sequences that come and go, allocated once; ``cache`` is what those that are there hold.

    The rows in use are always the first ones, so that ``cache`` is a view of the room and a step reads no other: one
    that joins takes the row behind the last, and where one leaves the last row moves into its place.

    Attributes:
        rows: most sequences.
        cache: of the sequences that are there; the same object throughout, at the same addresses.
    """

    def __init__(
        self,
        config: DecoderConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kind: KVKinds = "model",
    ) -> None:
        self.rows = rows
        self.cache = KVCache(config, rows, capacity, dtype, device, kind)
        self.bytes = self.cache.bytes
        self._room = copy.copy(self.cache)
        self.cache.lengths = self.cache.lengths[:0]
        self.cache._held = {pattern: held[:0] for pattern, held in self._room._held.items()}
        self._show(0)

    @property
    def used(self) -> int:
        """Number of sequences that are there."""
        return self.cache.lengths.shape[0]

    def begin(self) -> KVCache:
        """Return an empty cache of one sequence over the row behind the last; ``join`` makes it one of the pool's.

        Raises:
            ValueError: every row is taken.
        """
        if self.used == self.rows:
            raise ValueError(f"all {self.rows} rows of the cache pool are taken")
        row = copy.copy(self._room)
        _take(self._room, row, slice(self.used, self.used + 1))
        row._held = {pattern: held[:1].clone() for pattern, held in self._room._held.items()}  # -1: all empty
        row.lengths, row.longest = self._room.lengths[:1].clone(), 0
        return row

    def join(self, row: KVCache) -> None:
        """Make a sequence of ``begin``, which has read its prompt, the last of the pool."""
        cache = self.cache
        cache.lengths = torch.cat((cache.lengths, row.lengths))
        cache._held = {pattern: torch.cat((held, row._held[pattern])) for pattern, held in cache._held.items()}
        self._show(self.used)

    def leave(self, row: int) -> None:
        """Free a row; the last sequence moves into its place."""
        cache, last = self.cache, self.used - 1
        if row != last:
            cache.stored_keys.move(last, row)
            cache.stored_values.move(last, row)
            cache.lengths[row] = cache.lengths[last]
            for held in cache._held.values():
                held[row] = held[last]
        cache.lengths = cache.lengths[:last]
        cache._held = {pattern: held[:last] for pattern, held in cache._held.items()}
        self._show(last)

    def _show(self, rows: int) -> None:
        _take(self._room, self.cache, slice(0, rows))
        self.cache.longest = int(self.cache.lengths.max()) if rows else 0


def _take(room: KVCache, into: KVCache, rows: slice) -> None:
    """Make the keys and values of ``into`` views of these rows of ``room``."""
    into.stored_keys, into.stored_values = room.stored_keys.view(rows), room.stored_values.view(rows)
