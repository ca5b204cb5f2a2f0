"""Alarms read off a training: spikes of loss and gradient norm, and a training whose start was its best."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limbeck.measure.alarm import Alarm

__all__ = ["kept_start", "spikes"]

_WINDOW = 20  # lines of the log before, which say what is usual
_LEAST = 5  # lines without which nothing is usual yet
_LOSS = 1.5  # nats above the usual
_GRADIENT = 8.0  # times the usual


def spikes(metrics: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """Judge the largest loss and gradient norm between two lines of the log against the median of the lines before.

    Read off the log rather than watched, so that a resumed training tells the same.
    """
    out: list[Alarm] = []
    loss = [(m["step"], m["train/loss_max"]) for m in metrics if "train/loss_max" in m]
    norm = [(m["step"], m["grad_norm_max"]) for m in metrics if "grad_norm_max" in m]
    rises = [(step, value - usual, value, usual) for step, value, usual in _beside(loss)]
    if rises:
        step, rise, value, usual = max(rises, key=lambda r: r[1])
        count = sum(r[1] > _LOSS for r in rises)
        told = f"loss {value:.3g} by step {step} where {usual:.3g} was usual; {count} such rises above {_LOSS:g} nats"
        out.append(Alarm("loss-spike", rise, _LOSS, rise > _LOSS, told))
    ratios = [(step, value / usual, value, usual) for step, value, usual in _beside(norm) if usual > 0]
    if ratios:
        step, ratio, value, usual = max(ratios, key=lambda r: r[1])
        count = sum(r[1] > _GRADIENT for r in ratios)
        told = f"gradient norm {value:.3g} by step {step} against {usual:.3g} before; {count} above {_GRADIENT:g} times"
        out.append(Alarm("gradient-spike", ratio, _GRADIENT, ratio > _GRADIENT, told))
    return out


def kept_start(weights_step: int, steps: int) -> list[Alarm]:
    """Return the alarm that fires where the best weights by validation are those before the first step: the finished
    model learned nothing.

    Args:
        weights_step: step whose weights the model ends with.
        steps: how many there were.
    """
    fired = weights_step == 0 and steps > 0
    told = f"the finished model has the weights of step {weights_step} of {steps}; "
    told += "no evaluation was better than the first" if fired else "those of a later step than the first are expected"
    return [Alarm("kept-start", float(weights_step), 0.0, fired, told)]


def _beside(series: Sequence[tuple[int, float]]) -> Iterable[tuple[int, float, float]]:
    for i in range(_LEAST, len(series)):
        yield *series[i], statistics.median(v for _, v in series[max(0, i - _WINDOW) : i])
