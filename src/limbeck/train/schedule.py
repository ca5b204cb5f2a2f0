"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from limbeck.train.settings import TrainSettings

__all__ = ["cosine", "factor", "linear", "wsd"]


def linear(progress: float, final: float) -> float:
    """Fall in a straight line from 1 at ``progress`` 0 to ``final`` at 1."""
    return 1.0 - (1.0 - final) * progress


def cosine(progress: float, final: float) -> float:
    """Fall along half a cosine from 1 to ``final`` (Loshchilov & Hutter 2017, eq. 5)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd(progress: float, final: float, decay_share: float) -> float:
    """Stay at 1, then fall in a straight line over the last ``decay_share`` (Hu et al. 2024, MiniCPM; linear decay)."""
    start = 1.0 - decay_share
    return 1.0 if progress <= start else linear((progress - start) / decay_share, final)


def factor(step: int, total: int, settings: TrainSettings) -> float:
    """Return the learning rate of optimizer step ``step`` (0 to ``total`` - 1) as a share of the peak.

    Warm-up rises linearly and reaches the peak at its last step; the fall starts there and would reach
    ``final_fraction`` at step ``total``, the first not taken: no step is wasted on a rate of zero. wsd's share of decay
    is of all ``total`` steps.
    """
    warm = settings.warmup_steps(total)
    if step < warm:
        return (step + 1) / warm
    first = max(warm - 1, 0)
    span = total - first
    progress = (step - first) / span
    if settings.schedule == "linear":
        return linear(progress, settings.final_fraction)
    if settings.schedule == "cosine":
        return cosine(progress, settings.final_fraction)
    if settings.schedule == "wsd":
        return wsd(progress, settings.final_fraction, min(1.0, settings.decay_share * total / span))
    return 1.0
