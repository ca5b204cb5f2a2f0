"""Values that a backward computes again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["recomputed"]


@contextmanager
def recomputed(value: Tensor, compute: Callable[[], Tensor]) -> Iterator[None]:
    """Let no operation in the block keep ``value`` for its backward: it calls ``compute`` there.

    Args:
        value: contiguous, or it is kept as ever; it must live until the end of the block.
        compute: gives the same numbers again; it is called without gradients, once for each use.
    """
    place, count = value.data_ptr(), value.numel()  # not the tensor itself, which would be kept with the hooks
    dtype, device = value.dtype, value.device

    def pack(saved: Tensor) -> Any:
        same = saved.data_ptr() == place and saved.numel() == count and saved.dtype == dtype and saved.device == device
        return saved.shape if count and same and saved.is_contiguous() and saved.layout == torch.strided else saved

    def unpack(held: Any) -> Tensor:
        if isinstance(held, Tensor):
            return held
        with torch.no_grad():
            return compute().view(held)

    if not count or not value.is_contiguous():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
