"""Decoding with one full forward per token and no cache: slow and obvious."""

from __future__ import annotations

import math

import torch

from limbeck.data.batch import Batch

__all__ = ["slow_beam", "slow_draw", "slow_generate", "slow_log_probs"]


def slow_log_probs(model, ids: list[int]) -> torch.Tensor:
    """(V,) fp64 log-probabilities of the token after ``ids``."""
    with torch.no_grad():
        return model(Batch.of_ids(torch.tensor([ids])))[0, -1].double().log_softmax(-1)


def slow_draw(log_probs: torch.Tensor, uniform: float) -> int:
    total, last = 0.0, 0
    for token, value in enumerate(log_probs.softmax(-1).tolist()):
        if value > 0:
            total, last = total + value, token
        if total > uniform:
            return token
    return last


def slow_generate(model, prompt, new_tokens, end_id=None, pick=lambda log_probs, step: int(log_probs.argmax())):
    """Returns generated ids (end token included) and their summed log-probability."""
    ids, total = list(prompt), 0.0
    for step in range(new_tokens):
        log_probs = slow_log_probs(model, ids)
        token = pick(log_probs, step)
        total += float(log_probs[token])
        ids.append(token)
        if token == end_id:
            break
    return ids[len(prompt) :], total


def slow_beam(model, prompt, new_tokens, beams, length_penalty, end_id):
    """Finished hypotheses as (ids, score), best first, after the text of transformers' rule."""
    running, finished = [((), 0.0)], []
    for length in range(1, new_tokens + 1):
        candidates = []
        for ids, score in running:
            log_probs = slow_log_probs(model, [*prompt, *ids])
            candidates += [((*ids, t), score + float(lp)) for t, lp in enumerate(log_probs)]
        candidates.sort(key=lambda c: -c[1])
        candidates = candidates[: 2 * beams]
        ends = [c[0][-1] == end_id or length == new_tokens for c in candidates]
        ended = [c for c, e in zip(candidates[:beams], ends[:beams], strict=True) if e]
        finished += [(ids, s / len(ids) ** length_penalty) for ids, s in ended]
        finished = sorted(finished, key=lambda c: -c[1])[:beams]
        running = [c for c, e in zip(candidates, ends, strict=True) if not e][:beams]
        best = running[0][1] / length**length_penalty if running else -math.inf
        if not running or (len(finished) == beams and best <= finished[-1][1]):
            break
    return finished
