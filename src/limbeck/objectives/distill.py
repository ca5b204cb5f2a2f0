"""Distillation: labels and a teacher's distribution together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch
from limbeck.errors import ConfigError, nearest
from limbeck.kernels.fused_head.divergence import TeacherLoss
from limbeck.kernels.fused_head.fused import Losses, LossWeights
from limbeck.kernels.fused_head.losses import head_losses
from limbeck.losses.divergence import Divergence, ForwardKL, named, names
from limbeck.losses.terms import Counts, Term, Terms
from limbeck.objectives.teacher import Teacher

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Distillation:
    """``alpha`` x NLL of the target tokens + ``beta`` x T**2 x divergence to a teacher (Hinton et al. 2015, section 2).

    Terms: ``nll`` (mean over target tokens) and ``kl`` (the divergence, whichever it is, in nats; mean over its own
    tokens, weight ``beta * temperature**2``). A term of weight 0 is left out with its work.

    Attributes:
        teacher: source of the distribution.
        alpha: weight of the likelihood.
        beta: weight of the divergence.
        temperature: T, divides both logits in the divergence.
        divergence: a value, or one of ``losses.divergence.names()`` with its default skew.
        on: positions of the divergence: "all" that predict a real token, or "answers", those with a label.
    """

    teacher: Teacher
    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    divergence: Divergence | str = ForwardKL()
    on: Literal["all", "answers"] = "all"

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value:g}: a weight must be 0 or more")
        if self.alpha == self.beta == 0:
            raise ConfigError("alpha and beta are both 0: nothing would be learned, so give one of them a weight")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature:g}: it must be above 0")
        if self.on not in ("all", "answers"):
            raise ConfigError(f"'{self.on}' names no positions{nearest(self.on, ('all', 'answers'))}: all, answers")
        if isinstance(self.divergence, str):
            if self.divergence not in names():
                close = nearest(self.divergence, names())
                raise ConfigError(f"there is no divergence '{self.divergence}'{close}; known: {', '.join(names())}")
            object.__setattr__(self, "divergence", named(self.divergence))
        made_at = self.teacher.temperature
        if self.beta and made_at is not None and made_at != self.temperature:
            raise ConfigError(
                f"the teacher's signal was made at temperature {made_at:g}, not {self.temperature:g}: use that"
                " temperature, or make the signal again"
            )

    def counts(self, batch: Batch) -> Counts:
        """Return the target tokens under ``nll``, compared tokens under ``kl``."""
        labels, mask = self._positions(batch)
        out = {}
        if self.alpha:
            out["nll"] = float((labels != IGNORE).sum())
        if self.beta:
            out["kl"] = float(mask.sum())
        return out

    def _positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labels (B, T), and the mask (B, T) of compared positions."""
        labels = batch.next_token_labels()
        return labels, batch.prediction_mask() if self.on == "all" else labels != IGNORE

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        """Return sums over the batch.

        Args:
            model: the student.
            batch: as the teacher knows it, where that is a cache.
            counts: global counts of the optimizer step, where the caller has them. They change no number; with their
                true ratio the two terms share one gradient pass (see ``kernels.fused_head.fused``). None: the
                batch's own, which is right where the batch is the whole step.
        """
        labels, mask = self._positions(batch)
        own = self.counts(batch)
        step = own if counts is None else counts
        kl_weight = self.beta * self.temperature**2
        assert isinstance(self.divergence, Divergence)
        comparison = None
        if self.beta:
            comparison = TeacherLoss(self.teacher.signal(batch), self.divergence, self.temperature, mask)
        expected = LossWeights(
            nll=self.alpha / max(step.get("nll", 0.0), 1.0), divergence=kl_weight / max(step.get("kl", 0.0), 1.0)
        )
        sums: Losses = model(
            batch,
            read=lambda hidden, head: head_losses(
                hidden, head, labels if self.alpha else None, comparison=comparison, expected=expected
            ),
        )
        terms = {}
        if sums.nll is not None:
            terms["nll"] = Term(sums.nll, own["nll"], self.alpha)
        if sums.divergence is not None:
            terms["kl"] = Term(sums.divergence, own["kl"], kl_weight)
        return terms
