"""Choosing among given answers by their likelihood: cloze classification and few-shot tasks."""

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
from limbeck.model.cache import KVCache
from limbeck.model.decoder import Decoder

__all__ = ["Choices", "calibrate", "choose", "fit_prompt", "score_choices"]

Floats = NDArray[np.float64]
Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Choices:
    """How likely each answer is after each prompt.

    Attributes:
        log_probs: (n, C) summed log-likelihood of each answer's tokens, in nats.
        top: (n,) the likeliest next token of the whole vocabulary after each prompt.
        top_log_probs: (n,) its log-probability.
    """

    log_probs: Floats
    top: NDArray[np.int64]
    top_log_probs: Floats


def fit_prompt(prompt: Ids, room: int, first: int = 0) -> list[int]:
    """Cut ``prompt`` on its left to ``room`` tokens; its ``first`` tokens, such as a begin token, stay."""
    ids = list(prompt)
    if len(ids) <= room:
        return ids
    return ids[:first] + ids[len(ids) - (room - first) :]


def score_choices(
    model: Decoder, prompts: Sequence[Ids], answers: Sequence[Ids], *, batch_size: int = 16, pad_id: int = 0
) -> Choices:
    """Score the same ``answers`` after every prompt; a prompt runs once, whatever the number of answers.

    What is found for a prompt does not depend on the others, but for rounding.

    Args:
        model: put in evaluation mode meanwhile.
        prompts: token ids of each, which leave room for the longest answer within the context (see ``fit_prompt``).
        answers: token ids of each, none empty, no two alike.
        batch_size: prompts at once.
        pad_id: id written on padding.

    Raises:
        DataError: an empty prompt or answer, two answers alike or one the beginning of another, or a prompt that is
            too long.
    """
    _check(model, prompts, answers)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    log_probs, sure = np.zeros((len(prompts), len(answers))), np.zeros(len(prompts))
    top = np.zeros(len(prompts), dtype=np.int64)
    with evaluating(model):
        for at in range(0, len(order), batch_size):
            some = order[at : at + batch_size]
            scores, first = _batch(model, [prompts[i] for i in some], answers, pad_id)
            best = first.max(dim=-1)
            log_probs[some], sure[some] = scores.double().cpu().numpy(), best.values.double().cpu().numpy()
            top[some] = best.indices.cpu().numpy()
    return Choices(log_probs, top, sure)


def _check(model: Decoder, prompts: Sequence[Ids], answers: Sequence[Ids]) -> None:
    for one in answers:
        other = next((a for a in answers if len(a) > len(one) and tuple(a[: len(one)]) == tuple(one)), None)
        if other is not None and len(one):
            raise DataError(
                f"one answer's tokens {list(one)} begin another's {list(other)}: the shorter would always win, so "
                "choose answers none of which begins another"
            )
    if len(answers) < 2 or not all(answers) or len({tuple(a) for a in answers}) < len(answers):
        raise DataError("a choice needs two answers or more, each of a token at least and no two alike")
    longest = max(len(a) for a in answers)
    context = model.config.context
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {number} is empty: begin it with the begin or end token")
        if len(prompt) + longest - 1 > context:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens and answers up to {longest}, more than the model's context "
                f"of {context}: shorten it"
            )


def _batch(model: Decoder, prompts: Sequence[Ids], answers: Sequence[Ids], pad_id: int) -> tuple[Tensor, Tensor]:
    """Scores (B, C) of the answers and log-probabilities (B, V) of the next token after some prompts."""
    device, rest = model.device, max(len(a) for a in answers) - 1
    batch = _padded(prompts, pad_id, device)
    width = batch.ids.shape[1]
    cache = KVCache(model.config, len(prompts), width + rest, model.dtype, device) if rest else None
    last = torch.tensor([len(p) - 1 for p in prompts], device=device)
    first = _log_softmax(model(batch, at=last, cache=cache)[:, 0])  # (B, V)
    scores = first[:, torch.tensor([a[0] for a in answers], device=device)]
    if cache is not None:
        scores = scores + _continued(model, cache, len(prompts), answers, pad_id)
    return scores, first


def _continued(model: Decoder, cache: KVCache, prompts: int, answers: Sequence[Ids], pad_id: int) -> Tensor:
    """(B, C) log-likelihood of each answer's tokens after its first, on the cache of the prompts."""
    device, count = model.device, len(answers)
    cache.select(torch.arange(prompts, device=device).repeat_interleave(count))
    given = _padded([list(a[:-1]) for a in answers] * prompts, pad_id, device)
    labels = torch.zeros_like(given.ids)
    for i, answer in enumerate([*answers] * prompts):
        labels[i, : len(answer) - 1] = torch.tensor(answer[1:], device=device)

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        return _log_softmax(head(hidden)).gather(-1, labels[..., None]).squeeze(-1)

    found: Tensor = model(given, read=read, cache=cache)
    return torch.where(given.real, found, 0).sum(dim=1).reshape(prompts, count)


def _padded(rows: Sequence[Ids], pad_id: int, device: torch.device) -> Batch:
    lengths = [len(r) for r in rows]
    padded = [[*r, *[pad_id] * (max(lengths) - len(r))] for r in rows]
    return Batch.of_ids(torch.tensor(padded, device=device), lengths)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).log_softmax(dim=-1)


def calibrate(log_probs: Floats, content_free: Floats) -> Floats:
    """Divide out what the prompt alone prefers: contextual calibration (Zhao et al. 2021, section 5).

    Args:
        log_probs: (n, C) log-likelihood of each answer.
        content_free: (m, C) the same after prompts whose input says nothing, such as ``N/A``.

    Returns:
        (n, C) log of W p with W = diag(p_cf)^-1, b = 0; p and p_cf are normalised over the answers and p_cf is the
        mean over the m prompts.
    """
    prior = np.exp(_normalised(content_free)).mean(axis=0)
    return np.asarray(_normalised(log_probs) - np.log(prior / prior.sum()))


def choose(log_probs: Floats) -> NDArray[np.int64]:
    """Return the best answer of each row of (n, C) scores, (n,); of equals the first."""
    return np.asarray(log_probs.argmax(axis=1))


def _normalised(log_probs: Floats) -> Floats:
    return np.asarray(log_probs - np.logaddexp.reduce(log_probs, axis=1, keepdims=True))
