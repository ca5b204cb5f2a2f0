"""Preference pairs of random tokens, and a slow DPO: one completion at a time, whole logits, python sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch, Example, PairBatch
from limbeck.data.pairs import PairExample, collate_pairs
from tests.reference.training import VOCABULARY

__all__ = ["RandomPairs", "pairs", "slow_log_prob", "slow_loss"]


def pairs(count: int = 6, seed: int = 0, vocabulary: int = VOCABULARY, longest: int = 9) -> list[PairExample]:
    """Pairs whose prompts, chosen and rejected completions are of every length."""
    random = np.random.default_rng(seed)
    out = []
    for row in range(count):
        prompt = random.integers(1, vocabulary, random.integers(1, longest))
        sides = []
        for _ in range(2):
            answer = random.integers(1, vocabulary, random.integers(1, longest))
            ids = np.concatenate([prompt, answer]).astype(np.int32)
            sides.append(Example(row, f"r{row}", ids, np.arange(len(ids)) >= len(prompt)))
        out.append(PairExample(row, f"r{row}", sides[0].ids, sides[0].target, rejected=sides[1]))
    return out


def slow_log_prob(model: nn.Module, example: Example) -> Tensor:
    """Summed log-probability of an example's targets, alone, token by token."""
    logits = model(Batch.of_ids(torch.from_numpy(example.ids.astype(np.int64))[None]))[0]
    total = logits.new_zeros(())
    for t in range(1, len(example)):
        if example.target[t]:
            total = total + logits[t - 1].log_softmax(-1)[int(example.ids[t])]
    return total


def slow_loss(
    policy: nn.Module, reference: nn.Module, some: Sequence[PairExample], beta: float, smoothing: float = 0.0
) -> Tensor:
    """Mean of equation 7 of Rafailov et al. 2023 over ``some``, with the labels of a share ``smoothing`` turned."""
    losses = []
    for pair in some:
        with torch.no_grad():
            base = slow_log_prob(reference, pair) - slow_log_prob(reference, pair.rejected)
        h = beta * (slow_log_prob(policy, pair) - slow_log_prob(policy, pair.rejected) - base)
        losses.append((1 - smoothing) * (1 + (-h).exp()).log() + smoothing * (1 + h.exp()).log())
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class RandomPairs:
    """Micro-batches of ``rows`` pairs each, a pure function of the index."""

    rows: int = 2
    per_epoch: int = 6

    def at(self, index: int) -> PairBatch:
        every = pairs(self.rows * self.per_epoch)
        first = (index % self.per_epoch) * self.rows
        return collate_pairs([[pair] for pair in every[first : first + self.rows]])


LOG_2 = math.log(2)
