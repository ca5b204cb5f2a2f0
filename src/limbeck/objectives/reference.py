"""What a preference is measured against: the log-probabilities of both completions under the model of the start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from limbeck.data.batch import PairBatch
from limbeck.errors import DataError
from limbeck.kernels.fused_head.losses import head_sequence_log_probs

__all__ = ["AdapterOff", "Frozen", "LogProbs", "Reference", "Stored", "pair_log_probs"]

LogProbs = tuple[float, float]
"""Summed log-probability of the chosen and of the rejected completion, in nats."""


def pair_log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Return (P, 2) summed log-probabilities of the completions, in nats, by one forward over both sides."""
    joined, sequence = batch.joined()
    labels = joined.next_token_labels()

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        return head_sequence_log_probs(hidden, head, labels, sequence, 2 * batch.pairs)

    found: Tensor = model(joined, read=read)
    return found.view(2, batch.pairs).t()


class Reference(Protocol):
    """A source of reference log-probabilities.

    Attributes:
        kind: what reports call it.
    """

    kind: ClassVar[str]

    def log_probs(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Return (P, 2) nats without gradient; ``model`` is the policy, or its wrapper."""


class Frozen:
    """A frozen copy of a model: evaluation mode, no gradients, computed in the policy's dtype.

    Args:
        model: copied, whatever becomes of it afterwards.
    """

    kind: ClassVar[str] = "frozen"

    def __init__(self, model: nn.Module) -> None:
        self.model = _frozen(copy.deepcopy(model))
        self._narrow: dict[torch.dtype, nn.Module] = {}

    @torch.no_grad()
    def log_probs(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """See ``Reference``."""
        return pair_log_probs(self._like(_dtype(model)), batch).detach()

    def _like(self, dtype: torch.dtype) -> nn.Module:
        """Return the copy in the policy's precision: at the start both round alike, and the margin is 0 to the bit."""
        if _dtype(self.model) == dtype:
            return self.model
        if dtype not in self._narrow:
            twin = copy.deepcopy(self.model)
            for p in twin.parameters():
                if p.is_floating_point():
                    p.data = p.data.to(dtype)
            self._narrow[dtype] = twin
        return self._narrow[dtype]


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


class AdapterOff:
    """The policy itself with its adapter switched off: the base that the adapter began from, with no second copy.

    Args:
        off: context in which a model's adapters do nothing.
    """

    kind: ClassVar[str] = "adapter_off"

    def __init__(self, off: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
        self.off = off

    @torch.no_grad()
    def log_probs(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """See ``Reference``."""
        modes = {module: module.training for module in model.modules()}
        model.eval()  # no dropout in a reference
        try:
            with self.off(model):
                return pair_log_probs(model, batch).detach()
        finally:
            for module, mode in modes.items():
                module.training = mode


class Stored:
    """Log-probabilities computed before, found by a pair's key: its row id and its tokens.

    Args:
        table: key -> log-probabilities.
        where: what it was read from, for messages.
    """

    kind: ClassVar[str] = "precomputed"

    def __init__(self, table: Mapping[str, LogProbs], where: str) -> None:
        self.table, self.where = table, where

    def log_probs(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """See ``Reference``; ``model`` is not asked.

        Raises:
            DataError: a pair is not in the table, or reads differently there.
        """
        for key in batch.keys:
            if key not in self.table:
                raise DataError(
                    f"row {key.rpartition('#')[0]} is not among the reference log-probabilities in {self.where}, or "
                    "reads otherwise there: remove them, and they are computed again"
                )
        found = torch.tensor([self.table[key] for key in batch.keys], dtype=torch.float64)
        return found.to(batch.chosen.ids.device, torch.float64 if _dtype(model) == torch.float64 else torch.float32)
