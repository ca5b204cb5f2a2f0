"""What an objective is: model and batch in, named loss terms out."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import nn

from limbeck.losses.terms import Counts, Terms

__all__ = ["Objective"]

B = TypeVar("B", contravariant=True)


class Objective(Protocol[B]):
    """A training goal over one kind of batch.

    An implementation calls ``model(batch, read=...)``, never a method around the forward, so that wrappers for many
    devices keep working; it returns sums and counts, never a mean.
    """

    def counts(self, batch: B) -> Counts:
        """Count each term's items in ``batch`` without a forward."""

    def __call__(self, model: nn.Module, batch: B, counts: Counts | None = None) -> Terms:
        """Return each term's sum, count and weight over ``batch``.

        Args:
            model: what is trained, or its wrapper.
            batch: one micro-batch.
            counts: the terms' global counts, over every micro-batch and rank of the optimizer step, where the caller
                knows them. They change no number: a fused loss forms its gradient at their ratio in the first pass. An
                objective of a single term needs none.
        """


AnyObjective = Objective[Any]
