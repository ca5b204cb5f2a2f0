"""Choosing the next token: pure functions on logits (B, V), and uniforms that belong to one prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.decode.settings import Decoding

__all__ = [
    "choose",
    "distribution",
    "draw",
    "invert",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalise_repeats",
    "seen_tokens",
    "uniforms",
]


def penalise_repeats(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of ``seen`` tokens by ``penalty`` and multiply negative ones (Keskar et al. 2019, CTRL).

    Dividing a negative score, as the paper writes it, would reward the repeat; multiplying is what transformers does.

    Args:
        scores: (B, V) logits or log-probabilities.
        seen: (B, V) bool, true for tokens of the prompt and of what was generated.
        penalty: above 1 repeats lose.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def seen_tokens(rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (B, V) bool: which tokens occur in each row."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for row, ids in enumerate(rows):
        seen[row, torch.as_tensor(list(ids), device=device)] = True
    return seen


def keep_top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest logits of each row (Fan et al. 2018) and their token ids, both (B, min(k, V)).

    They stay in the order of the vocabulary, so that a rounding error that swaps two near-equal logits moves no
    border of the cumulative distribution by more than that error.
    """
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    ids, order = ids.sort(dim=-1)
    return values.gather(-1, order), ids


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set to -inf all but the smallest set of tokens of probability at least ``p`` (Holtzman et al. 2019).

    The likeliest token always stays; the one that crosses ``p`` stays too.
    """
    ordered, ids = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    drop = before >= p
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, ids, drop), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Set to -inf the tokens less likely than ``p`` times the likeliest (Nguyen et al. 2024)."""
    probability = logits.softmax(dim=-1)
    return logits.masked_fill(probability < p * probability.amax(dim=-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one index a row by inverting the cumulative distribution in fp64.

    Args:
        logits: (B, N), -inf for what cannot be drawn.
        uniform: (B,) numbers in [0, 1); equal numbers give equal draws, whatever stands in the other rows.

    Returns:
        (B,) int64 indices.
    """
    return invert(logits.double().softmax(dim=-1), uniform)


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw one index a row in proportion to ``weights`` (B, N), fp64 and not all 0, by (B,) numbers in [0, 1)."""
    cumulative = weights.cumsum(dim=-1)
    # The last sum is 1 only up to rounding: scale the uniform by it and stay below, so that no draw falls behind it.
    end = cumulative[..., -1:]
    place = torch.minimum(uniform.to(cumulative).unsqueeze(-1) * end, end.nextafter(torch.zeros_like(end)))
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1)


def choose(logits: Tensor, decoding: Decoding, uniform: Tensor | None) -> Tensor:
    """Choose the next token of each row: (B, V) -> (B,) int64.

    Temperature, then top-k, top-p and min-p, each on what the one before left, as in transformers.

    Args:
        logits: (B, V), repeats already penalised.
        decoding: the options; at temperature 0 the likeliest token is taken.
        uniform: (B,) in [0, 1), one for each row; None only when greedy.
    """
    if uniform is None:
        return logits.argmax(dim=-1)
    scores, ids = _filtered(logits, decoding)
    index = draw(scores, uniform)
    return index if ids is None else ids.gather(-1, index[:, None]).squeeze(-1)


def distribution(logits: Tensor, decoding: Decoding) -> Tensor:
    """Return (B, V) fp64 probabilities from which ``choose`` draws; greedy: all on the likeliest token."""
    if decoding.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros(logits.shape, dtype=torch.float64, device=logits.device).scatter_(-1, best, 1.0)
    scores, ids = _filtered(logits, decoding)
    probabilities = scores.softmax(dim=-1)
    return (
        probabilities if ids is None else torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, ids, probabilities)
    )


def _filtered(logits: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor | None]:
    """Scores (B, N) in fp64 of what may be drawn, and its ids (B, N); None: the whole vocabulary in order."""
    scores, ids = logits.double() / decoding.temperature, None
    if decoding.top_k:
        scores, ids = keep_top_k(scores, decoding.top_k)
    if decoding.top_p < 1:
        scores = keep_top_p(scores, decoding.top_p)
    if decoding.min_p:
        scores = keep_min_p(scores, decoding.min_p)
    return scores, ids


def uniforms(seed: int, prompt: Sequence[int], occurrence: int, sample: int) -> np.random.Generator:
    """Return a stream of uniforms that belongs to one sample of one prompt.

    Its key is made of the seed, the prompt's own tokens, how many equal prompts came before it, and the number of the
    sample: what is drawn depends neither on the batch nor on the order of the prompts (I26).
    """
    text = f"{seed}/{occurrence}/{sample}/" + ",".join(map(str, prompt))
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
