"""Key/value cache of fixed size for token-by-token decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern

__all__ = ["KVCache", "Slots"]


@dataclass(frozen=True, slots=True)
class Slots:
    """Where this call's tokens go in one pattern's ring, and what stands there; shared by the layers of that pattern.

    Attributes:
        write: (B, T) slot of each new token; the last slot of the buffer is a bin for what is not kept.
        positions: (B, S) position held by each slot after the write, -1 where empty.
        before: (B, S) the same before the write.
    """

    write: Tensor
    positions: Tensor
    before: Tensor


class KVCache:
    """Keys and values of ``batch_size`` sequences of at most ``capacity`` tokens, allocated once.

    Rows grow independently (ragged prompts): ``lengths`` (B,) counts the real tokens of each. A rolling pattern keeps
    only the slots it can still see.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.capacity = config, capacity
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.longest = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._held: dict[AnyPattern, Tensor] = {}
        for i in range(config.layers):
            pattern = config.pattern_at(i)
            slots = pattern.slots(capacity) + 1
            shape = (batch_size, config.kv_heads, slots, config.head_width)
            self.keys.append(torch.zeros(shape, dtype=dtype, device=device))
            self.values.append(torch.zeros(shape, dtype=dtype, device=device))
            if pattern not in self._held:
                self._held[pattern] = torch.full((batch_size, slots), -1, dtype=torch.int64, device=device)

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def positions(self, batch: Batch) -> Tensor:
        """(B, T) absolute positions of ``batch``'s tokens behind what is held; 0 on padding."""
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
            plans[pattern] = Slots(write, new, held)
            self._held[pattern] = new
        self.lengths = after
        self.longest += batch.ids.shape[1]
        return plans

    def write(self, layer: int, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` and ``values`` (B, KV, T, D) of one layer at the planned slots."""
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[layer][rows, :, slots.write] = keys.transpose(1, 2).to(self.keys[layer].dtype)
        self.values[layer][rows, :, slots.write] = values.transpose(1, 2).to(self.values[layer].dtype)

    def select(self, rows: Tensor) -> None:
        """Reorder or repeat rows in place, as a beam search does; ``rows`` (B',) indexes the present rows."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self._held = {p: h[rows] for p, h in self._held.items()}
        self.lengths = self.lengths[rows]
