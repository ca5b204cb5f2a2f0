"""Memory that a thread keeps between calls of a kernel: fresh pages cost more than the work that they are for."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["kept"]

_held = threading.local()


def kept(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (elements,) of this thread's memory for ``dtype`` on ``device``; the next call gives out the same."""
    buffers: dict[tuple[torch.dtype, torch.device], Tensor] = _held.__dict__.setdefault("buffers", {})
    key = (dtype, device)
    if key not in buffers or buffers[key].numel() < elements:
        with torch.inference_mode(False):
            buffers[key] = torch.empty(elements, dtype=dtype, device=device)
    return buffers[key][:elements]
