"""A linear layer that knows the named parts of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from limbeck.kernels.recompute import recomputed

__all__ = ["Linear", "project"]


class Linear(nn.Linear):
    """``nn.Linear`` whose output rows are named parts, such as q, k and v in one matrix.

    One matrix is one matmul; adapters and importers that speak of ``q`` alone find its rows by name.

    Attributes:
        parts: name -> number of output rows, in order.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], bias: bool = True) -> None:
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = dict(parts)

    def rows(self, part: str) -> slice:
        """Return the output rows of one part."""
        at = 0
        for name, size in self.parts.items():
            if name == part:
                return slice(at, at + size)
            at += size
        raise KeyError(part)


def project(layer: nn.Module, x: Tensor, recompute: Callable[[], Tensor] | None) -> Tensor:
    """Compute ``layer(x)``; with ``recompute``, which computes ``x`` once more, no backward keeps ``x``."""
    y: Tensor
    if recompute is None or torch.compiler.is_compiling():
        y = layer(x)
        return y
    with recomputed(x, recompute):
        y = layer(x)
    return y
