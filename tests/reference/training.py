"""Tiny models, an endless stream and a plain objective for tests of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch
from limbeck.losses.terms import Term
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder

VOCABULARY = 50


def tiny(seed: int = 0, **changes: Any) -> Decoder:
    """A decoder of two layers with every bias and gain random."""
    torch.manual_seed(seed)
    base: dict[str, Any] = {"vocab_size": VOCABULARY, "context": 32, "layers": 2, "hidden_size": 16, "heads": 2}
    model = Decoder(DecoderConfig(**(base | changes)))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


@dataclass(frozen=True)
class Random:
    """Micro-batches of unequal length with random masks, each a pure function of its index."""

    rows: int = 2
    per_epoch: int = 6
    width: int = 12

    def at(self, index: int) -> Batch:
        g = torch.Generator().manual_seed(1000 + index % self.per_epoch)
        lengths = torch.randint(3, self.width + 1, (self.rows,), generator=g).tolist()
        ids = torch.randint(1, VOCABULARY, (self.rows, max(lengths)), generator=g)
        batch = Batch.of_ids(ids, lengths)
        learn = torch.rand(ids.shape, generator=g) < 0.7
        learn[:, 1] = True
        first = (index % self.per_epoch) * self.rows
        rows = torch.where(batch.real, batch.row_ids + first, -1)
        return Batch(batch.ids, batch.real & learn, batch.document_ids, rows, batch.offsets, plain=True)


@dataclass(frozen=True)
class PlainNextToken:
    """Two terms with different denominators: the NLL of targets, and a pull on every real token's hidden state."""

    pull: float = 0.0

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"nll": float((batch.next_token_labels() != IGNORE).sum()), "pull": float(batch.real.sum())}

    def __call__(self, model: nn.Module, batch: Batch, counts: Mapping[str, float] | None = None) -> dict[str, Term]:
        labels, real = batch.next_token_labels(), batch.real

        def read(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
            logits = head(hidden)
            wide = logits if logits.dtype == torch.float64 else logits.float()
            nll = F.cross_entropy(wide.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
            return nll, (hidden.to(wide.dtype) ** 2).mean(dim=-1)[real].sum()

        nll, pull = model(batch, read=read)
        counts = self.counts(batch)
        return {"nll": Term(nll, counts["nll"]), "pull": Term(pull, counts["pull"], self.pull)}


@dataclass(frozen=True)
class HeldOut:
    """Mean NLL over a few micro-batches; draws random numbers, which must leave no trace in the training."""

    first: int = 3
    size: int = 2

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        assert not model.training
        torch.rand(7)
        total, count = 0.0, 0.0
        for index in range(self.first, self.first + self.size):
            batch = Random().at(index)
            terms = PlainNextToken()(model, batch)
            total, count = total + terms["nll"].sum.item(), count + terms["nll"].count
        return {"valid/nll": total / count, "valid/draw": float(torch.rand(()))}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit-equal, name by name."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
