"""Probes of a model's probabilities: lost generality against its base, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch, Example, collate
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.session import evaluating
from limbeck.decode.settings import Decoding
from limbeck.losses.divergence import TopK, forward_kl
from limbeck.measure.alarm import Alarm, Subject
from limbeck.measure.likelihood import nll_sums
from limbeck.model.decoder import Decoder
from limbeck.model.heads import class_logits

__all__ = ["Calibration", "GeneralText", "Generality", "calibration_error"]

_SEQUENCES = 4  # whose logits exist at once
_LEAST = 100  # predictions below which a calibration error is mostly noise


@dataclass(frozen=True, eq=False)
class Generality:
    """KL from the base to the model on text that the base wrote, in nats a token: what it no longer believes.

    The base's ``top_k`` likeliest tokens are kept, all others are one bucket: a lower bound of the whole divergence,
    close to it where the base is sure.

    Attributes:
        batches: what the base wrote.
        signals: its likeliest tokens at every predicted position of each batch.
        threshold: in nats a token.
    """

    batches: tuple[Batch, ...]
    signals: tuple[TopK, ...]
    threshold: float = 0.5
    name: ClassVar[str] = "generality"

    @classmethod
    def of(
        cls,
        base: Decoder,
        tokenizer: Tokenizer,
        *,
        texts: int = 8,
        tokens: int = 64,
        top_k: int = 64,
        seed: int = 0,
        threshold: float = 0.5,
    ) -> Generality:
        """Let ``base`` write texts from its begin (or end) token at temperature 1, and keep its beliefs of them."""
        room = min(tokens, base.config.context - 1)
        begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        decoding = Decoding(max_new_tokens=room, temperature=1.0, samples=texts, seed=seed)
        out = generate(base, tokenizer, [[begin]], decoding, batch_size=texts)[0]
        rows = [np.array([begin, *g.ids], dtype=np.int32) for g in out]
        examples = [Example(i, str(i), ids, np.ones(len(ids), np.bool_)) for i, ids in enumerate(rows)]
        batches = [
            collate([[e] for e in examples[at : at + _SEQUENCES]], tokenizer.pad_id)
            for at in range(0, len(examples), _SEQUENCES)
        ]
        k = min(top_k, base.config.vocab_size)
        signals = []
        with evaluating(base):
            for batch in batches:
                best = _predicted(base, batch).log_softmax(dim=-1).topk(k, dim=-1)
                signals.append(TopK(best.values.cpu(), best.indices.cpu(), rows=base.config.vocab_size))
        return cls(tuple(batches), tuple(signals), threshold)

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent for a model whose head tells classes."""
        model = subject.model
        if model is None or model.config.classes is not None:
            return None
        total, count = 0.0, 0
        with evaluating(model):
            for batch, signal in zip(self.batches, self.signals, strict=True):
                logits = _predicted(model, batch)
                teacher = TopK(signal.log_probs.to(logits.device), signal.ids.to(logits.device), rows=signal.rows)
                total += float(forward_kl(logits, teacher).double().sum())
                count += logits.shape[0]
        value = total / count
        return Alarm(
            self.name,
            value,
            self.threshold,
            value > self.threshold,
            f"on {count} tokens that the base wrote the model is {value:.3f} nats a token from it; "
            f"up to {self.threshold:g} is expected",
        )


def _predicted(model: Decoder, batch: Batch) -> Tensor:
    """(N, V) logits at every position of ``batch`` that predicts a token, in fp32 at least."""
    batch = batch.to(model.device)
    mask = batch.prediction_mask()

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        logits: Tensor = head(hidden[mask])
        return logits

    found: Tensor = model(batch, read=read)
    return found if found.dtype == torch.float64 else found.float()


@dataclass(frozen=True, eq=False)
class GeneralText:
    """Rise of the loss on held-out general text over the base's, in nats a token."""

    examples: tuple[Example, ...]
    base_nats: float
    batch_size: int = 16
    threshold: float = 0.2
    name: ClassVar[str] = "general-text"

    @classmethod
    def of(cls, base: Decoder, examples: Sequence[Example], *, batch_size: int = 16) -> GeneralText:
        """Ask ``base`` for its loss on ``examples``."""
        return cls(tuple(examples), _nats(base, examples, batch_size), batch_size)

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent for a model whose head tells classes."""
        if subject.model is None or subject.model.config.classes is not None:
            return None
        now = _nats(subject.model, self.examples, self.batch_size)
        rise = now - self.base_nats
        return Alarm(
            self.name,
            rise,
            self.threshold,
            rise > self.threshold,
            f"the loss on {len(self.examples)} held-out general texts is {now:.3f} nats a token, {self.base_nats:.3f} "
            f"for the base; a rise up to {self.threshold:g} is expected",
        )


def _nats(model: Decoder, examples: Sequence[Example], batch_size: int) -> float:
    return float(nll_sums(model, examples, batch_size).sum() / sum(e.predictions for e in examples))


def calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int = 15
) -> tuple[float, float]:
    """Return the expected calibration error over equal bins (Guo et al. 2017, equation 3), and mean confidence -
    accuracy.

    Args:
        confidence: (n,) probability of what was predicted, 0 to 1.
        correct: (n,) 1 where it was right.
        bins: of equal width, the last closed.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence)), float((confidence - correct).mean())


@dataclass(frozen=True, eq=False)
class Calibration:
    """Is a model right as often as it says: over next tokens that are targets, or over classes.

    Attributes:
        batches: held out.
        threshold: of the expected calibration error.
    """

    batches: tuple[Batch, ...]
    threshold: float = 0.1
    name: ClassVar[str] = "calibration"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent below 100 predictions, where the error is mostly noise."""
        model = subject.model
        if model is None or not self.batches:
            return None
        with evaluating(model):
            found = [_confidence(model, batch.to(model.device)) for batch in self.batches]
        confidence, correct = (np.concatenate([f[i] for f in found]) for i in (0, 1))
        if len(confidence) < _LEAST:
            return None
        error, over = calibration_error(confidence, correct)
        what = "tokens" if model.config.classes is None else "classes"
        return Alarm(
            self.name,
            error,
            self.threshold,
            error > self.threshold,
            f"over {len(confidence)} predicted {what} confidence and accuracy differ by {error:.3f} (it is "
            f"{'over' if over > 0 else 'under'}confident by {abs(over):.3f}); up to {self.threshold:g} is expected",
        )


def _confidence(model: Decoder, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability of the likeliest token (class) at each target, and whether it is the true one."""
    if model.config.classes is not None and batch.labels is not None:
        logits, labels = class_logits(model, batch, model.config.classes.pool), batch.labels
    else:
        every = batch.next_token_labels()[batch.prediction_mask()]
        kept = every != IGNORE
        logits, labels = _predicted(model, batch)[kept], every[kept]
    best = logits.double().softmax(dim=-1).max(dim=-1)
    return best.values.cpu().numpy(), (best.indices == labels).double().cpu().numpy()
