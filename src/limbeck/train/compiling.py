"""Blocks under torch.compile for one training, and what compiling them took."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Protocol, runtime_checkable

from torch import nn

from limbeck.errors import ConfigError

__all__ = ["WarmUp", "compiled"]

_LATER = 5  # steps that the first is compared with; their median leaves out those that compile another width


@runtime_checkable
class _Compilable(Protocol):
    """A model that knows which of its parts to compile."""

    def compiled(self) -> AbstractContextManager[None]:
        """Compile them until the end of the block."""


def compiled(model: nn.Module, asked: bool) -> AbstractContextManager[None]:
    """Compile the parts of ``model`` that can be, where that is ``asked`` for, until the end of the block.

    Raises:
        ConfigError: the model has no such parts.
    """
    if not asked:
        return nullcontext()
    if not isinstance(model, _Compilable):
        raise ConfigError(f"{type(model).__name__} has no blocks to compile: set compile=false")
    return model.compiled()


class WarmUp:
    """Tells once what compiling took of the first step: its seconds less the median of the next few."""

    def __init__(self, asked: bool) -> None:
        self._seconds: list[float] = []
        self._told = not asked

    def after(self, seconds: float, last: bool) -> dict[str, float]:
        """Note a step of ``seconds``; ``compile_seconds`` once enough are known or none is to come, else nothing."""
        if self._told:
            return {}
        self._seconds.append(seconds)
        first, *later = self._seconds
        self._told = last or len(later) == _LATER
        return {"compile_seconds": max(0.0, first - median(later))} if self._told and later else {}
