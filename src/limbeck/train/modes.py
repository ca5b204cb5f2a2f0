"""What is switched for one training, and back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limbeck.errors import ConfigError
from limbeck.train.settings import TrainSettings

__all__ = ["checkpointing", "random_state"]


@contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Give the caller's generators back as they were."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def checkpointing(model: nn.Module, settings: TrainSettings) -> Iterator[None]:
    """Switch activation checkpointing as ``settings`` say in every module that knows of it, and back at the end.

    Raises:
        ConfigError: it is asked for, and no module knows of it.
    """
    able: list[Any] = [m for m in model.modules() if hasattr(m, "checkpointing")]
    if settings.checkpointing and not able:
        raise ConfigError(f"{type(model).__name__} has no activation checkpointing: switch it off")
    before = [m.checkpointing for m in able]
    for module in able:
        module.checkpointing = settings.checkpointing
    try:
        yield
    finally:
        for module, value in zip(able, before, strict=True):
            module.checkpointing = value
