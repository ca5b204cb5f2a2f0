"""Losses over preference pairs, from summed log-probabilities of completions under a policy and a reference.

Every function takes log-probabilities in nats, (P, 2): column 0 of the chosen completion, column 1 of the rejected one.
The reference takes no gradient; ``beta`` is the weight of the KL to it that the losses stand for.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

__all__ = ["PreferenceLoss", "log_ratio_margin", "preference_loss", "rewards"]

PreferenceLoss = Literal["sigmoid", "ipo"]


def rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return (P, 2) implicit rewards ``beta * log(policy / reference)``, up to a constant (Rafailov et al. 2023, sec.
    4).
    """
    return beta * (policy - reference)


def log_ratio_margin(policy: Tensor, reference: Tensor) -> Tensor:
    """Return (P,) how much more the policy than the reference prefers the chosen completion, in nats; 0 where both are
    one.
    """
    ratio = policy - reference
    return ratio[:, 0] - ratio[:, 1]


def preference_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    beta: float,
    loss: PreferenceLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of each pair.

    With h the margin of log-ratios: ``sigmoid`` is ``-log sigmoid(beta h)`` (DPO, Rafailov et al. 2023, equation 7);
    with ``label_smoothing`` e, the rate of wrong labels, ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``
    (cDPO, Mitchell 2023). ``ipo`` is ``(h - 1 / (2 beta))**2`` (Azar et al. 2023, equation 17, tau = beta).

    Args:
        policy: (P, 2), carries the gradient.
        reference: (P, 2).
        beta: above 0.
        loss: which.
        label_smoothing: 0 to below 0.5; of ``sigmoid`` alone.

    Returns:
        (P,). Where policy and reference are equal: log 2 for ``sigmoid``, ``1 / (4 beta**2)`` for ``ipo``.

    Raises:
        ValueError: an option out of its range, or smoothing asked of ``ipo``.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be above 0 and label_smoothing {label_smoothing} within 0 to below 0.5")
    h = log_ratio_margin(policy, reference)
    if loss == "ipo":
        if label_smoothing:
            raise ValueError("label smoothing belongs to the sigmoid loss: IPO has none")
        return (h - 1 / (2 * beta)).square()
    out = -(1 - label_smoothing) * F.logsigmoid(beta * h)
    return out - label_smoothing * F.logsigmoid(-beta * h) if label_smoothing else out
