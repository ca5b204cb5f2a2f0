"""Perplexity of token ids the slow way: one window, one forward, one token at a time; and transformers' own."""

from __future__ import annotations

import torch

from limbeck.data.batch import Batch

__all__ = ["slow_nll", "transformers_nll"]


def _windows(length: int, context: int, stride: int):
    """The loop of transformers' guide on perplexity of fixed-length models: begin, end, tokens to score."""
    previous = 0
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        yield begin, end, end - previous
        previous = end
        if end == length:
            break


def slow_nll(model, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """Summed nats and number of predicted tokens."""
    total, count = 0.0, 0
    for begin, end, fresh in _windows(len(ids), context, stride):
        window = ids[begin:end]
        with torch.no_grad():
            logits = model(Batch.of_ids(torch.tensor([window])))[0].double()
        for place in range(len(window) - fresh, len(window)):
            if place > 0:
                total -= float(logits[place - 1].log_softmax(-1)[window[place]])
                count += 1
    return total, count


def transformers_nll(twin, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """The guide's code: labels of old tokens set to -100, the model's own loss times the tokens it is the mean of."""
    total, count = 0.0, 0
    for begin, end, fresh in _windows(len(ids), context, stride):
        window = torch.tensor([ids[begin:end]])
        target = window.clone()
        target[:, :-fresh] = -100
        scored = int((target[:, 1:] != -100).sum())
        if scored:
            with torch.no_grad():
                total += float(twin(window, labels=target).loss) * scored
            count += scored
    return total, count
