"""Attention patterns as values: which earlier positions a position may see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from limbeck.config import Config

__all__ = ["AnyPattern", "Causal", "Sliding"]


class Causal(Config):
    """Every earlier position and itself."""

    kind: Literal["causal"] = "causal"

    def is_causal(self, length: int) -> bool:
        """Is this plain causal attention on sequences of ``length`` tokens, so that no mask is needed?"""
        return True

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Broadcast two tensors of positions to a bool tensor: may ``query`` see ``key``?"""
        return key <= query

    def slots(self, capacity: int) -> int:
        """Cache slots needed to decode ``capacity`` tokens."""
        return capacity

    def slot(self, position: Tensor) -> Tensor:
        """Cache slot of a position."""
        return position

    def kept(self, position: Tensor, length: Tensor) -> Tensor:
        """Which positions of a sequence of ``length`` a later one can still see."""
        return position < length


class Sliding(Config):
    """Itself, the ``window - 1`` positions before it, and the first ``sinks`` (Xiao et al. 2023, attention sinks).

    Positions stay absolute, so a rolling cache gives what one full forward under the same mask gives (I13).
    """

    kind: Literal["sliding"] = "sliding"
    window: int = Field(ge=1, description="positions seen, the current one included")
    sinks: int = Field(0, ge=0, description="first positions that are always seen")

    def is_causal(self, length: int) -> bool:
        """Is this plain causal attention on sequences of ``length`` tokens, so that no mask is needed?"""
        return length <= self.window + self.sinks

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Broadcast two tensors of positions to a bool tensor: may ``query`` see ``key``?"""
        return (key <= query) & ((key > query - self.window) | (key < self.sinks))

    def slots(self, capacity: int) -> int:
        """Cache slots needed to decode ``capacity`` tokens: the window and the sinks, no more."""
        return min(capacity, self.sinks + self.window)

    def slot(self, position: Tensor) -> Tensor:
        """Cache slot of a position: sinks stay, the rest rolls."""
        rolling = self.sinks + (position - self.sinks) % self.window
        return position.where(position < self.sinks, rolling)

    def kept(self, position: Tensor, length: Tensor) -> Tensor:
        """Which positions of a sequence of ``length`` a later one can still see."""
        return (position < length) & ((position < self.sinks) | (position >= length - self.window))


AnyPattern = Annotated[Causal | Sliding, Field(discriminator="kind")]
