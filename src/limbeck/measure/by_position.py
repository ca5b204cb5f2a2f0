"""Perplexity by position: how well a model predicts tokens near the start of a text, and far beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.session import evaluating
from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, ratio
from limbeck.model.decoder import Decoder

__all__ = ["PositionRange", "nats_by_position", "position_ranges", "recomputed_nats"]

_ROWS = 1024  # of logits at a time


@dataclass(frozen=True, slots=True)
class PositionRange:
    """Positions from ``low`` to below ``high`` of the predicted token, counted from 0."""

    low: int
    high: int

    @property
    def statistic(self) -> Statistic:
        """Nats per token predicted in this range."""
        name = f"{self.low}-{self.high - 1}"
        return ratio(f"nll {name}", f"tokens {name}", name=f"nats at {name}", better="lower", unit="nats/token")


def position_ranges(context: int, length: int) -> tuple[PositionRange, ...]:
    """Return the ranges of a text of ``length`` tokens: the two halves of the training context, then its doublings."""
    edges = [1, context // 2, context]
    while edges[-1] < length:
        edges.append(2 * edges[-1])
    kept = [e for e in edges if e < length] + [length]
    return tuple(PositionRange(a, b) for a, b in zip(kept[:-1], kept[1:], strict=True))


def nats_by_position(model: Decoder, texts: Sequence[Sequence[int]], ranges: Sequence[PositionRange]) -> Scores:
    """Score each text in one forward, as one document, and sum its nats by the position of the predicted token.

    Args:
        model: put in evaluation mode meanwhile.
        texts: token ids; one row of the scores each.
        ranges: where to sum. A text that ends before a range has no tokens in it.

    Returns:
        Columns ``nll LOW-LAST`` and ``tokens LOW-LAST`` of each range, which its ``statistic`` reads.

    Raises:
        DataError: there is no text, or one is longer than the model can read.
    """
    if not texts or any(len(text) < 2 for text in texts):
        raise DataError("perplexity by position needs texts of two tokens or more")
    columns: dict[str, list[float]] = {}
    with evaluating(model):
        for text in texts:
            nats = _nats(model, text)
            for r in ranges:
                part = nats[max(r.low - 1, 0) : r.high - 1]
                name = f"{r.low}-{r.high - 1}"
                columns.setdefault(f"nll {name}", []).append(float(part.double().sum()))
                columns.setdefault(f"tokens {name}", []).append(float(part.numel()))
    return Scores.of([str(i) for i in range(len(texts))], **{k: np.array(v) for k, v in columns.items()})


def _nats(model: Decoder, text: Sequence[int]) -> Tensor:
    """(T - 1,) nats of each token but the first."""
    ids = torch.tensor([list(text)], device=model.device)

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        parts = zip(torch.split(hidden[0, :-1], _ROWS), torch.split(ids[0, 1:], _ROWS), strict=True)
        return torch.cat([F.cross_entropy(head(h).float(), labels, reduction="none") for h, labels in parts])

    found: Tensor = model(Batch.of_ids(ids), read=read)
    return found


def recomputed_nats(model: Decoder, text: Sequence[int], positions: Sequence[int], window: int) -> list[float]:
    """Return the nats of the tokens at ``positions``, each from a forward of its own over the ``window`` tokens before.

    What a sliding window with recomputation gives: exact at any position, and a forward of ``window`` tokens a token.

    Raises:
        DataError: a position has no token before it.
    """
    if any(not 1 <= p < len(text) for p in positions):
        raise DataError(f"a position to predict must lie between 1 and {len(text) - 1}")
    found = []
    with evaluating(model):
        for p in positions:
            begin = max(0, p - window)
            ids = torch.tensor([list(text[begin:p])], device=model.device)
            last = torch.tensor([p - begin - 1], device=model.device)
            logits: Tensor = model(Batch.of_ids(ids), at=last)
            label = torch.tensor([text[p]], device=model.device)
            found.append(float(F.cross_entropy(logits[:, 0].float(), label)))
    return found
