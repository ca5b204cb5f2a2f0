"""Likelihood of continuations, each after a context of its own, and whether greedy decoding would write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.session import evaluating
from limbeck.errors import DataError
from limbeck.kernels.fused_head.engine import chunk_size
from limbeck.model.decoder import Decoder

__all__ = ["Continuations", "score_continuations"]

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Continuations:
    """What is found for n pairs of a context and its continuation.

    Attributes:
        log_probs: (n,) summed log-likelihood of the continuation's tokens, in nats.
        greedy: (n,) bool: every token of the continuation is the likeliest in its place.
    """

    log_probs: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def score_continuations(
    model: Decoder, pairs: Sequence[tuple[Ids, Ids]], *, batch_size: int = 16, pad_id: int = 0
) -> Continuations:
    """Score the second of each pair of ids after the first.

    Pairs that feed the model the same tokens (answers of one token after one context) share a forward. What is found
    for a pair does not depend on the others, but for rounding.

    Args:
        model: put in evaluation mode meanwhile.
        pairs: token ids of context and continuation; the model reads all of them but the last.
        batch_size: sequences at once.
        pad_id: id written on padding.

    Raises:
        DataError: an empty context or continuation, or a pair that is too long.
    """
    _check(model, pairs)
    wanted: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        wanted.setdefault((*context, *continuation[:-1]), []).append(number)
    order = sorted(wanted, key=len, reverse=True)
    log_probs, greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=np.bool_)
    with evaluating(model):
        for at in range(0, len(order), batch_size):
            some = order[at : at + batch_size]
            places = [
                (row, len(ids) - len(pairs[n][1]) + k, token, n)
                for row, ids in enumerate(some)
                for n in wanted[ids]
                for k, token in enumerate(pairs[n][1])
            ]
            values, hits = _batch(model, some, [p[:3] for p in places], pad_id)
            numbers = [n for *_, n in places]
            np.add.at(log_probs, numbers, values)
            np.logical_and.at(greedy, numbers, hits)
    return Continuations(log_probs, greedy)


def _check(model: Decoder, pairs: Sequence[tuple[Ids, Ids]]) -> None:
    reach = model.config.context
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            raise DataError(f"pair {number} has an empty context or continuation: a context holds one token at least")
        if len(context) + len(continuation) - 1 > reach:
            raise DataError(
                f"pair {number} has {len(context)} tokens of context and {len(continuation)} to score, more than the "
                f"model's context of {reach}: shorten it"
            )


def _batch(
    model: Decoder, inputs: Sequence[Ids], places: Sequence[tuple[int, int, int]], pad_id: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probability of the token of each ``(row, column, token)`` after that column, and whether it is the likeliest.

    The head sees only the columns asked for, a bounded number at a time.
    """
    device, lengths = model.device, [len(ids) for ids in inputs]
    padded = [[*ids, *[pad_id] * (max(lengths) - len(ids))] for ids in inputs]
    batch = Batch.of_ids(torch.tensor(padded, device=device), lengths)
    rows, columns, tokens = (torch.tensor(part, device=device) for part in zip(*places, strict=True))
    size = chunk_size(len(places), 3 * 4 * model.config.vocab_size)  # logits, their log-softmax, a copy in float32

    def read(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
        values, hits = [], []
        for at in range(0, len(places), size):
            some, right = slice(at, at + size), tokens[at : at + size]
            logits: Tensor = head(hidden[rows[some], columns[some]])
            if logits.dtype != torch.float64:
                logits = logits.float()
            values.append(logits.log_softmax(dim=-1).gather(-1, right[:, None]).squeeze(-1))
            hits.append(logits.argmax(dim=-1) == right)
        return torch.cat(values), torch.cat(hits)

    values, hits = model(batch, read=read)
    return values.double().cpu().numpy(), hits.cpu().numpy()
