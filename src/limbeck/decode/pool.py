"""Sequences that are decoded together while others join and leave between the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.step import MOST_ROWS, CompiledStep
from limbeck.model.cache import CachePool, KVCache, KVKinds
from limbeck.model.decoder import Decoder

__all__ = ["DecodingPool"]

R = TypeVar("R")


class DecodingPool:
    """Sequences on one pool of caches (continuous batching: Yu et al. 2022, "Orca").

    Every prompt is read alone and each step appends one token to every row, so that what a row is computed from does
    not depend on the others. As in ``DecodingSession`` steps are compiled where they can be.

    Attributes:
        capacity: most tokens of a sequence.
    """

    def __init__(self, model: Decoder, rows: int, capacity: int, cache: KVKinds = "model") -> None:
        self.model, self.capacity = model, capacity
        self._pool = CachePool(model.config, rows, capacity, model.dtype, model.device, cache)
        self._compiled: CompiledStep | None = None
        self._asked = False  # whether the compiled step was asked for

    @property
    def rows(self) -> int:
        """Most sequences."""
        return self._pool.rows

    @property
    def used(self) -> int:
        """Number of sequences that are there; their rows are 0 to ``used - 1``."""
        return self._pool.used

    @property
    def bytes(self) -> int:
        """Bytes of the whole pool."""
        return self._pool.bytes

    def join(self, prompt: Sequence[int]) -> Tensor:
        """Read a prompt into the row behind the last; returns the logits (V,) after its last token.

        Raises:
            ValueError: every row is taken, or the prompt is longer than the capacity.
        """
        row = self._pool.begin()
        last = torch.tensor([len(prompt) - 1], device=self.model.device)
        logits: Tensor = self.model(self._batch(prompt), at=last, cache=row)
        self._pool.join(row)
        return logits[0, 0]

    def join_reading(self, prompt: Sequence[int], read: Callable[[Tensor, nn.Module], R]) -> R:
        """Do what ``join`` does, but return what ``read`` makes of the hidden states (1, T, C) and the head."""
        row: KVCache = self._pool.begin()
        found: R = self.model(self._batch(prompt), read=read, cache=row)
        self._pool.join(row)
        return found

    def leave(self, row: int) -> None:
        """Free a row; the last sequence moves into its place."""
        self._pool.leave(row)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row; returns the next logits (B, V), which hold until the next step.

        Raises:
            ValueError: a row is at its capacity.
        """
        ids = torch.tensor(list(tokens), device=self.model.device)[:, None]
        if not self._asked:  # the pool stays where it is, so that one description serves for any number of rows
            self._compiled, self._asked = CompiledStep.of(self.model, self._pool.cache), True
        if self._compiled is not None and len(ids) <= MOST_ROWS:
            return self._compiled.run(ids)[:, 0]
        logits: Tensor = self.model(Batch.of_ids(ids), cache=self._pool.cache)
        return logits[:, -1]

    def _batch(self, prompt: Sequence[int]) -> Batch:
        return Batch.of_ids(torch.tensor([list(prompt)], device=self.model.device))
