"""Direct preference optimisation: a policy is moved toward chosen completions and away from rejected ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.data.batch import IGNORE, PairBatch
from limbeck.errors import ConfigError
from limbeck.losses.preference import PreferenceLoss, preference_loss, rewards
from limbeck.losses.terms import Counts, Term, Terms
from limbeck.objectives.reference import Reference, pair_log_probs

__all__ = ["Preference"]

_PER_PAIR = (
    "preference", "accuracy", "margin", "reward_chosen", "reward_rejected", "log_prob_chosen", "log_prob_rejected",
    "reference_chosen", "reference_rejected", "accuracy_per_token",
)  # fmt: skip
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Preference:
    """A loss over preference pairs against a reference (``losses.preference``).

    Terms: ``preference``, a mean over pairs, is what is learned. The others have weight 0 and are there to be logged:
    over pairs ``accuracy`` (the policy's reward of the chosen completion is the greater; a tie counts half),
    ``margin`` (of the rewards), ``reward_*``, ``log_prob_*`` and ``reference_*`` of each side (nats a completion), and
    ``accuracy_per_token`` (the policy alone gives the chosen completion the greater mean log-probability a token); over
    completion tokens ``log_prob_*_per_token`` and ``reference_*_per_token``.

    Attributes:
        reference: log-probabilities to compare with.
        beta: strength of the pull to the reference.
        loss: sigmoid (DPO) or ipo.
        label_smoothing: assumed rate of wrong labels, of the sigmoid loss.
        average: divide each log-probability by its completion's tokens before the loss and the rewards.
    """

    reference: Reference
    beta: float = 0.1
    loss: PreferenceLoss = "sigmoid"
    label_smoothing: float = 0.0
    average: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta is {self.beta:g}: it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing is {self.label_smoothing:g}: it must be 0 or more and below 0.5")
        if self.label_smoothing and self.loss == "ipo":
            raise ConfigError("label_smoothing belongs to the sigmoid loss, and IPO has none: leave it out")

    def counts(self, batch: PairBatch) -> Counts:
        """Return pairs, and completion tokens of each side for what is told a token."""
        chosen, rejected = (float((b.next_token_labels() != IGNORE).sum()) for b in (batch.chosen, batch.rejected))
        sides = {"chosen": chosen, "rejected": rejected}
        per_token = {f"{kind}_{s}_per_token": sides[s] for kind in ("log_prob", "reference") for s in _SIDES}
        return dict.fromkeys(_PER_PAIR, float(batch.pairs)) | per_token

    def __call__(self, model: nn.Module, batch: PairBatch, counts: Counts | None = None) -> Terms:
        """Return sums over the batch's pairs; ``counts`` of the step are not needed, as one term alone carries a
        gradient.
        """
        reference = self.reference.log_probs(model, batch)
        policy = pair_log_probs(model, batch)
        tokens = batch.completion_tokens().to(policy)
        per_token, reference_per_token = policy / tokens, reference / tokens
        ours, theirs = (per_token, reference_per_token) if self.average else (policy, reference)
        losses = preference_loss(ours, theirs, beta=self.beta, loss=self.loss, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            reward = rewards(ours, theirs, self.beta)
            margin = reward[:, 0] - reward[:, 1]
            values = {
                "accuracy": _greater(margin),
                "margin": margin,
                "accuracy_per_token": _greater(per_token[:, 0] - per_token[:, 1]),
            }
            for i, side in enumerate(_SIDES):
                values |= {
                    f"reward_{side}": reward[:, i],
                    f"log_prob_{side}": policy[:, i],
                    f"reference_{side}": reference[:, i],
                    f"log_prob_{side}_per_token": policy[:, i],
                    f"reference_{side}_per_token": reference[:, i],
                }
        own = self.counts(batch)
        terms = {"preference": Term(losses.sum(), own["preference"])}
        return terms | {name: Term(value.detach().sum(), own[name], 0.0) for name, value in values.items()}


def _greater(difference: Tensor) -> Tensor:
    """1 above 0, 0.5 at 0, 0 below."""
    return (difference.sign() + 1) / 2
