"""How near one model's beliefs are to another's, item by item: KL divergence and top-token agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch, Example, collate
from limbeck.decode.session import evaluating
from limbeck.errors import DataError
from limbeck.losses.divergence import forward_kl
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import ratio
from limbeck.model.decoder import Decoder

__all__ = ["KL_PER_TOKEN", "TOP_AGREEMENT", "agreement"]

KL_PER_TOKEN = ratio("kl", "tokens", name="KL to the original", better="lower", unit="nats/token", bounds=(0, math.inf))
"""KL(original || other), the mean over predicted tokens."""

TOP_AGREEMENT = ratio("agree", "tokens", name="same top token", better="higher", bounds=(0, 1))
"""Share of predicted tokens for which both models' likeliest token is the same."""


def agreement(model: Decoder, other: Decoder, examples: Sequence[Example], batch_size: int = 16) -> Scores:
    """Compare two models of one vocabulary at every target of ``examples``.

    Args:
        model: the one that is departed from.
        other: the one that departs.
        examples: tokens with their targets; the chunks of one row make one item.
        batch_size: examples at once; changes nothing but rounding.

    Returns:
        One row an item: ``kl`` in nats and ``agree``, sums over its ``tokens``.

    Raises:
        DataError: no example has a target.
    """
    chosen = sorted((e for e in examples if e.predictions), key=lambda e: -len(e))
    if not chosen:
        raise DataError("no token of these texts can be predicted, so nothing can be compared: give longer ones")
    sums = {e.id: np.zeros(3) for e in examples if e.predictions}
    with evaluating(model), evaluating(other):
        for at in range(0, len(chosen), batch_size):
            part = chosen[at : at + batch_size]
            batch = collate([[e] for e in part])
            row = (batch.next_token_labels() != IGNORE).nonzero()[:, 0]
            ours, theirs = _predicted(model, batch), _predicted(other, batch)
            kl = forward_kl(theirs, ours).double().cpu()
            agree = (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).double().cpu()
            columns = torch.stack((kl, agree, torch.ones_like(kl)), dim=1)
            found = torch.zeros(len(part), 3, dtype=torch.float64).index_add_(0, row, columns)
            for e, values in zip(part, found.numpy(), strict=True):
                sums[e.id] += values
    table = np.stack(list(sums.values()))
    return Scores.of(sums, kl=table[:, 0], agree=table[:, 1], tokens=table[:, 2])


def _predicted(model: Decoder, batch: Batch) -> Tensor:
    """(N, V) logits that predict a target, in fp32 at least."""
    batch = batch.to(model.device)
    mask = batch.next_token_labels() != IGNORE

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        logits: Tensor = head(hidden[mask])
        return logits

    found: Tensor = model(batch, read=read)
    return found if found.dtype == torch.float64 else found.float()
