"""Paraphrastic proximity by the model itself: mutual likelihood of two texts, and similarity of pooled states.

No larger teacher is asked (Jung et al. 2023, "Impossible Distillation", section 3.2, asks an entailment model; here the
model that is to learn judges).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.data.rows import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.session import evaluating
from limbeck.measure.continuation import score_continuations
from limbeck.model.decoder import Decoder
from limbeck.synth.filters import Filter

__all__ = ["MutualLikelihood", "PooledStates", "Scorer"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scorer:
    """A model that judges pairs of texts.

    Attributes:
        model: put in evaluation mode meanwhile.
        tokenizer: of the model.
        bridge: text between a sentence and its restatement, as the generator is asked.
        batch_size: sequences at once.
        center: (D,) mean pooled state of ordinary texts, taken off before comparing: the states of a language model
            share a large common part, so that all cosines would be near 1; None: nothing is taken off.
    """

    model: Decoder
    tokenizer: Tokenizer
    bridge: str = "\nIn other words:"
    batch_size: int = 32
    center: Floats | None = None

    @property
    def first(self) -> list[int]:
        """The token that a text is scored after when it stands alone: the begin token, else the end token."""
        t = self.tokenizer
        return [t.eos_id if t.bos_id is None else t.bos_id]

    def fits(self, a: str, b: str) -> bool:
        """Return whether both texts with the bridge fit into the context."""
        size = sum(len(self.tokenizer.encode(text)) for text in (a, self.bridge, f" {b}"))
        return size < self.model.config.context

    def gains(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return (n,) how much likelier the second text is after the first than alone, in nats a token.

        That is the pointwise mutual information of both texts under the model by the second one's tokens. A pair that
        does not fit the context gains minus infinity.
        """
        after, alone, sizes = [], [], []
        kept = [i for i, (a, b) in enumerate(pairs) if b.strip() and self.fits(a, b)]
        out = np.full(len(pairs), -np.inf)
        if not kept:
            return out
        for i in kept:
            a, b = pairs[i]
            ids = self.tokenizer.encode(f" {b.strip()}", continues=True)
            after.append(([*self.first, *self.tokenizer.encode(a + self.bridge)], ids))
            alone.append((self.first, ids))
            sizes.append(len(ids))
        pad = self.tokenizer.pad_id
        scores = [
            score_continuations(self.model, some, batch_size=self.batch_size, pad_id=pad).log_probs
            for some in (after, alone)
        ]
        out[kept] = (scores[0] - scores[1]) / np.array(sizes)
        return out

    def mutual(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return (n,) the smaller of both directions' gains, in nats a token."""
        return np.minimum(self.gains(pairs), self.gains([(b, a) for a, b in pairs]))

    def states(self, texts: Sequence[str]) -> Floats:
        """Return (n, D) the mean final hidden state of each text, cut to the context; zeros for a blank one."""
        encoded = [ids[: self.model.config.context] for ids in self.tokenizer.encode_many(list(texts))]
        order = sorted((i for i, ids in enumerate(encoded) if ids), key=lambda i: -len(encoded[i]))
        out = np.zeros((len(texts), self.model.config.hidden_size))
        with evaluating(self.model):
            for at in range(0, len(order), self.batch_size):
                some = order[at : at + self.batch_size]
                out[some] = self._pooled([encoded[i] for i in some])
        return out

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Floats:
        lengths = [len(row) for row in rows]
        padded = [[*row, *[self.tokenizer.pad_id] * (max(lengths) - len(row))] for row in rows]
        batch = Batch.of_ids(torch.tensor(padded, device=self.model.device), lengths)

        def read(hidden: Tensor, head: nn.Module) -> Tensor:
            real = batch.real[..., None].to(hidden.dtype)
            return (hidden * real).sum(dim=1) / real.sum(dim=1)

        pooled: Tensor = self.model(batch, read=read)
        found: Floats = pooled.double().cpu().numpy()
        return found

    def centred(self, texts: Sequence[str]) -> Scorer:
        """Return the same scorer with the mean state of ``texts`` as its center."""
        center = self.states(texts).mean(axis=0)
        return Scorer(self.model, self.tokenizer, self.bridge, self.batch_size, center)

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return (n,) cosines of the pooled states of both texts, the center taken off; 0 where a text is blank."""
        if not pairs:
            return np.zeros(0)
        states = [self.states(side) for side in zip(*pairs, strict=True)]
        blank = np.array([not (a.strip() and b.strip()) for a, b in pairs])
        if self.center is not None:
            states = [s - self.center for s in states]
        below = np.linalg.norm(states[0], axis=1) * np.linalg.norm(states[1], axis=1)
        above = (states[0] * states[1]).sum(axis=1)
        out = np.zeros(len(pairs))
        np.divide(above, below, out=out, where=(below > 0) & ~blank)
        return out


def _pairs(rows: Rows, fields: tuple[str, str]) -> list[tuple[str, str]]:
    return [(row.text(fields[0], rows.source), row.text(fields[1], rows.source)) for row in rows]


@dataclass(frozen=True, slots=True)
class MutualLikelihood(Filter):
    """Drop pairs of which one text does not make the other at least ``least`` nats a token likelier."""

    name: ClassVar[str] = "mutual likelihood"
    scorer: Scorer
    least: float = 0.38
    fields: tuple[str, str] = ("sentence1", "sentence2")

    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Score all pairs in both directions."""
        found = self.scorer.mutual(_pairs(rows, self.fields))
        return {
            row.id: f"mutual likelihood {value:.2f} nats a token is below {self.least:g}"
            for row, value in zip(rows, found, strict=True)
            if value < self.least
        }


@dataclass(frozen=True, slots=True)
class PooledStates(Filter):
    """Drop pairs whose pooled states have a cosine below ``least``."""

    name: ClassVar[str] = "pooled states"
    scorer: Scorer
    least: float = 0.46
    fields: tuple[str, str] = ("sentence1", "sentence2")

    def drops(self, rows: Rows) -> Mapping[str, str]:
        """Compare the states of all pairs."""
        found = self.scorer.similarities(_pairs(rows, self.fields))
        return {
            row.id: f"cosine {value:.2f} of the pooled states is below {self.least:g}"
            for row, value in zip(rows, found, strict=True)
            if value < self.least
        }
