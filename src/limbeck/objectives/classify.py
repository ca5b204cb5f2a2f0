"""The class of a document, told by a head of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch
from limbeck.errors import ConfigError
from limbeck.losses.likelihood import token_nll
from limbeck.losses.terms import Counts, Term, Terms
from limbeck.model.heads import class_logits

__all__ = ["Classify"]


@dataclass(frozen=True, slots=True)
class Classify:
    """Negative log-likelihood of each document's class. Terms: ``nll``, over the rows that have a label.

    Attributes:
        pool: what the head reads of a document, as in ``model.heads``.
    """

    pool: Literal["last", "mean"] = "last"

    def counts(self, batch: Batch) -> Counts:
        """Return rows with a label."""
        return {"nll": float((_labels(batch) != IGNORE).sum())}

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        """Sum over the batch's labelled rows, in nats."""
        labels = _labels(batch)
        nll = token_nll(class_logits(model, batch, self.pool), labels)
        return {"nll": Term(nll.sum(), float((labels != IGNORE).sum()))}


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ConfigError(
            "a class belongs to a whole row: documents that are classified cannot be packed (packing=false)"
        )
    return batch.labels
