"""The next token: pretraining, and fine-tuning with answer masks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from limbeck.data.batch import IGNORE, Batch
from limbeck.errors import ConfigError
from limbeck.kernels.fused_head.fused import Losses, LossWeights
from limbeck.kernels.fused_head.losses import head_losses
from limbeck.losses.terms import Counts, Term, Terms

__all__ = ["NextToken"]


@dataclass(frozen=True, slots=True)
class NextToken:
    """Negative log-likelihood of every target token, given those before it in its document.

    Terms: ``nll``, and ``z`` (the squared log-partition over the same tokens) where ``z_loss`` is not 0.

    Attributes:
        z_loss: weight of the squared log-partition (PaLM, 2022, section 5: 1e-4), which keeps logits from drifting.
    """

    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss < float("inf"):
            raise ConfigError(f"z_loss is {self.z_loss:g}: a weight must be 0 or more")

    def counts(self, batch: Batch) -> Counts:
        """Return the target tokens, the denominator of every term."""
        tokens = float((batch.next_token_labels() != IGNORE).sum())
        return {"nll": tokens, "z": tokens} if self.z_loss else {"nll": tokens}

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        """Return sums over the batch's target tokens, in nats; ``counts`` of the step save a scaling of gradients."""
        labels = batch.next_token_labels()
        tokens = float((labels != IGNORE).sum())
        step = max(tokens if counts is None else counts.get("nll", tokens), 1)
        expected = LossWeights(nll=1 / step, z=self.z_loss / step)
        sums: Losses = model(
            batch,
            read=lambda hidden, head: head_losses(hidden, head, labels, z=self.z_loss > 0, expected=expected),
        )
        assert sums.nll is not None
        terms = {"nll": Term(sums.nll, tokens)}
        if sums.z is not None:
            terms["z"] = Term(sums.z, tokens, self.z_loss)
        return terms
