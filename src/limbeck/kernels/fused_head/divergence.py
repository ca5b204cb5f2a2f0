"""What a student's rows are compared with: a teacher's signal, a divergence and the rows that count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.kernels.hooks import hooked
from limbeck.losses.divergence import Divergence, TopK

__all__ = ["TeacherLoss", "Dense", "compute_dtype", "plain_linear"]


def plain_linear(head: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (V, D) and bias (V,) of a head that is ``x @ weight.T + bias`` and nothing else; None of any other module.

    Quantized heads, adapters around or inside it and hooks on its forward all make it another function.
    """
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return None
    if hooked(head) or not head.weight.is_floating_point():
        return None
    return head.weight, head.bias


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which products with ``x`` are formed: autocast's where it is on, else that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@dataclass(frozen=True, slots=True)
class Dense:
    """A teacher's whole distribution, held as the hidden states that its logits are made from, a chunk at a time.

    Attributes:
        hidden: (..., D) final hidden states of the teacher.
        head: what turns (n, D) into its logits (n, V'); any module.
    """

    hidden: Tensor
    head: nn.Module

    def select(self, index: Tensor) -> Dense:
        """Return rows ``index`` (M,) of the signal flattened to (N, D)."""
        return Dense(self.hidden.reshape(-1, self.hidden.shape[-1]).index_select(0, index), self.head)

    @torch.no_grad()
    def logits(self, start: int, stop: int) -> Tensor:
        """Return (stop - start, V') logits of rows ``start`` to ``stop`` of a signal already flat; never with a
        gradient.
        """
        rows: Tensor = self.head(self.hidden[start:stop].detach())
        return rows


@dataclass(frozen=True, slots=True)
class TeacherLoss:
    """A divergence to a teacher, row by row.

    Attributes:
        teacher: its signal, over the rows of the student's hidden states.
        divergence: which one.
        temperature: divides both logits; the divergence is not multiplied by its square.
        mask: (N,) bool rows that count; None: all.
    """

    teacher: Dense | TopK
    divergence: Divergence
    temperature: float = 1.0
    mask: Tensor | None = None

    def select(self, index: Tensor) -> TeacherLoss:
        """Return the comparison of rows ``index`` (M,) alone."""
        mask = None if self.mask is None else self.mask.index_select(0, index)
        return replace(self, teacher=self.teacher.select(index), mask=mask)
