"""What a student learns from beside the labels: a teacher's distribution at every position."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.kernels.fused_head.divergence import Dense
from limbeck.losses.divergence import TopK

__all__ = ["Dense", "LiveTeacher", "Teacher", "TopK", "fingerprint"]


class Teacher(Protocol):
    """A source of next-token distributions.

    Attributes:
        temperature: the one its signal was made at, or None where it serves any.
    """

    @property
    def temperature(self) -> float | None:
        """See the class."""

    def signal(self, batch: Batch) -> Dense | TopK:
        """Return the distribution predicted at each position of ``batch``: hidden (B, T, D) and head, or (B, T, K) top
        tokens.

        The student's and the teacher's vocabularies may differ in width by padding rows alone; a divergence cuts both
        to the common rows.
        """


class LiveTeacher:
    """A model that is asked for every batch: frozen, in evaluation mode, without gradients."""

    temperature: float | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Dense:
        """Return final hidden states (B, T, D) and the head, so that logits are formed a chunk at a time."""
        self.model.eval()

        def read(hidden: Tensor, head: nn.Module) -> Dense:
            return Dense(hidden, head)

        dense: Dense = self.model(batch, read=read)
        return dense


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, x in model.state_dict().items():
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
