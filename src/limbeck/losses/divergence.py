"""Divergences between a teacher's and a student's next-token distribution, dense or over a top-k partition.

Every value is per token, in nats, summed over the vocabulary. None is multiplied by the squared temperature: that
factor (Hinton et al. 2015, section 2: it keeps gradients of one size across temperatures) is the objective's weight.

P is the teacher, Q the student. Logits must be finite; probabilities that underflow to zero are harmless.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.losses.likelihood import wide

__all__ = [
    "Divergence",
    "ForwardKL",
    "JSD",
    "ReverseKL",
    "SkewKL",
    "TopK",
    "divergence",
    "forward_kl",
    "jsd",
    "named",
    "names",
    "partition",
    "reverse_kl",
    "skew_kl",
]


@dataclass(frozen=True, slots=True)
class TopK:
    """The k likeliest next tokens of a teacher; what is missing to 1 is one more bucket, the tail.

    A divergence then compares K + 1 buckets, the student's tail being the mass of all its other tokens. Merging
    outcomes never raises an f-divergence (log-sum inequality), so the value is a lower bound of the dense one and equal
    to it where K is the whole vocabulary.

    Attributes:
        log_probs: (..., K) log-probabilities in nats.
        ids: (..., K) int64 distinct token ids.
        temperature: at which the probabilities were made. The tail's share at another temperature is not known, so a
            divergence at another temperature is refused rather than renormalised.
        rows: size of the vocabulary that the probabilities share out; None: the student's.
        tail: (...,) log-mass of all other tokens; None: what is missing to 1, which rounding drowns where it is small.
    """

    log_probs: Tensor
    ids: Tensor
    temperature: float = 1.0
    rows: int | None = None
    tail: Tensor | None = None

    def select(self, index: Tensor) -> TopK:
        """Return rows ``index`` (M,) of the signal flattened to (N, K)."""
        k = self.ids.shape[-1]
        log_probs, ids = (x.reshape(-1, k).index_select(0, index) for x in (self.log_probs, self.ids))
        tail = None if self.tail is None else self.tail.reshape(-1).index_select(0, index)
        return TopK(log_probs, ids, self.temperature, self.rows, tail)

    def part(self, start: int, stop: int) -> TopK:
        """Return rows ``start`` to ``stop`` of a signal already flat."""
        tail = None if self.tail is None else self.tail[start:stop]
        return TopK(self.log_probs[start:stop], self.ids[start:stop], self.temperature, self.rows, tail)

    def buckets(self, dtype: torch.dtype, vocabulary: int) -> Tensor:
        """Return (..., K + 1) log-probabilities with the tail last, in ``dtype``; (..., K) where K is the whole
        vocabulary.

        A tail of no mass (rounding may even make it negative) is held at the dtype's epsilon where it is the missing
        mass, at the least normal number where it is given, so that every divergence stays finite.
        """
        given = self.log_probs.to(dtype)
        if given.shape[-1] == vocabulary:
            return given
        info = torch.finfo(dtype)
        if self.tail is None:
            tail = (1 - given.exp().sum(dim=-1, keepdim=True)).clamp_min(info.eps).log()
        else:
            tail = self.tail.to(dtype).clamp_min(math.log(info.tiny)).unsqueeze(-1)
        return torch.cat((given, tail), dim=-1)

    def check(self, temperature: float, student_rows: int) -> int:
        """Return over how many of the student's rows its softmax runs.

        Raises:
            ValueError: made at another temperature, or over more rows than the student has.
        """
        if not math.isclose(temperature, self.temperature, rel_tol=1e-6):
            raise ValueError(
                f"the teacher's top-k was made at temperature {self.temperature:g} and cannot serve at {temperature:g}:"
                " make it again at that temperature"
            )
        rows = self.rows if self.rows is not None else student_rows
        if rows > student_rows:
            raise ValueError(
                f"the teacher's top-k shares out {rows} vocabulary rows but the student has {student_rows}:"
                f" make it again over {student_rows} rows"
            )
        return rows


class Divergence(ABC):
    """A divergence as a frozen value: how far the student's distribution lies from the teacher's."""

    @abstractmethod
    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return (N,) nats from log-probabilities (N, V) of both; differentiable in both."""

    @abstractmethod
    def value_and_slope(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the (N,) value, (N, V) its derivative in each student log-probability taken alone, and the (N,) sum of
        those.

        The derivative in the logits under ``student = log_softmax(logits)`` is ``slope - softmax * sum``. The slope is
        the caller's to overwrite.
        """


@dataclass(frozen=True, slots=True)
class ForwardKL(Divergence):
    """KL(P || Q) = sum_v p (log p - log q): covers every mode of the teacher (Hinton et al. 2015)."""

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:  # noqa: D102 - see the base
        return (teacher.exp() * (teacher - student)).sum(dim=-1)

    def value_and_slope(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        p = teacher.exp()
        value = (teacher - student).mul_(p).sum(dim=-1)
        return value, p.neg_(), torch.full_like(value, -1)


@dataclass(frozen=True, slots=True)
class ReverseKL(Divergence):
    """KL(Q || P) = sum_v q (log q - log p): seeks a mode of the teacher (Gu et al. 2023, MiniLLM)."""

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:  # noqa: D102
        return (student.exp() * (student - teacher)).sum(dim=-1)

    def value_and_slope(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        q = student.exp()
        slope = (student - teacher).mul_(q)
        value = slope.sum(dim=-1)
        return value, slope.add_(q), value + 1


@dataclass(frozen=True, slots=True)
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence, beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q.

    Agarwal et al. 2024 (GKD), equation 1; ``beta`` 0.5 is the usual one, symmetric and at most log 2.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"JSD needs a beta between 0 and 1, not {self.beta:g}: its ends are 0 everywhere")

    def _mixture(self, student: Tensor, teacher: Tensor) -> Tensor:
        return torch.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:  # noqa: D102
        mixture = self._mixture(student, teacher)
        kl_teacher = (teacher.exp() * (teacher - mixture)).sum(dim=-1)
        return self.beta * kl_teacher + (1 - self.beta) * (student.exp() * (student - mixture)).sum(dim=-1)

    def value_and_slope(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        mixture = self._mixture(student, teacher)
        kl_teacher = (teacher - mixture).mul_(teacher.exp()).sum(dim=-1)
        # The terms of dM cancel, since beta p + (1 - beta) q = m: only (1 - beta) q (log q - log m) is left.
        slope = (student - mixture).mul_(student.exp()).mul_(1 - self.beta)
        total = slope.sum(dim=-1)
        return self.beta * kl_teacher + total, slope, total


@dataclass(frozen=True, slots=True)
class SkewKL(Divergence):
    """KL(P || alpha P + (1 - alpha) Q) (Ko et al. 2024, DistiLLM, equation 3); ``alpha`` 0 is the forward KL."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"skew KL needs an alpha in [0, 1), not {self.alpha:g}: at 1 it is 0 everywhere")

    def _mixture(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.alpha == 0:
            return student
        return torch.logaddexp(teacher + math.log(self.alpha), student + math.log1p(-self.alpha))

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:  # noqa: D102
        return (teacher.exp() * (teacher - self._mixture(student, teacher))).sum(dim=-1)

    def value_and_slope(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        mixture, p = self._mixture(student, teacher), teacher.exp()
        value = (teacher - mixture).mul_(p).sum(dim=-1)
        # p (1 - alpha) q / m, the quotient in logs: q and m may both underflow.
        slope = (student - mixture).add_(math.log1p(-self.alpha)).exp_().mul_(p).neg_()
        return value, slope, slope.sum(dim=-1)


_NAMES: dict[str, type[Divergence]] = {"forward_kl": ForwardKL, "reverse_kl": ReverseKL, "jsd": JSD, "skew_kl": SkewKL}


def names() -> tuple[str, ...]:
    """Return names that ``named`` knows."""
    return tuple(_NAMES)


def named(name: str, skew: float | None = None) -> Divergence:
    """Return the divergence called ``name``.

    Args:
        name: one of ``names()``.
        skew: JSD's beta or skew KL's alpha; None: its default.

    Raises:
        KeyError: there is no such name.
        ValueError: ``skew`` is out of range, or was given to a divergence that has none.
    """
    kind = _NAMES[name]
    if skew is None:
        return kind()
    if kind is JSD:
        return JSD(skew)
    if kind is SkewKL:
        return SkewKL(skew)
    raise ValueError(f"{name} takes no skew; jsd and skew_kl do")


def partition(student_logits: Tensor, teacher: Tensor | TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of student and teacher over the same outcomes, at ``temperature``.

    Args:
        student_logits: (N, V).
        teacher: logits (N, V'), both then cut to the first min(V, V') columns since widths differ by padding rows
            alone; or a top-k of N rows.
        temperature: divides both logits.

    Returns:
        Two (N, V) or (N, K + 1) tensors; the student's carries the gradient.

    Raises:
        ValueError: the top-k does not fit the temperature or the vocabulary.
    """
    dtype = wide(student_logits.dtype)
    if isinstance(teacher, Tensor):
        rows = min(student_logits.shape[-1], teacher.shape[-1])
        student = torch.log_softmax(student_logits[..., :rows].to(dtype) / temperature, dim=-1)
        return student, torch.log_softmax(teacher[..., :rows].to(dtype) / temperature, dim=-1)
    rows = teacher.check(temperature, student_logits.shape[-1])
    scaled = student_logits[..., :rows].to(dtype) / temperature
    given = teacher.buckets(dtype, rows)
    student = torch.log_softmax(scaled, dim=-1).gather(-1, teacher.ids)
    if given.shape[-1] == teacher.ids.shape[-1]:
        return student, given
    rest = scaled.scatter(-1, teacher.ids, -math.inf)
    tail = torch.logsumexp(rest, dim=-1, keepdim=True) - torch.logsumexp(scaled, dim=-1, keepdim=True)
    return torch.cat((student, tail), dim=-1), given


def divergence(kind: Divergence, student_logits: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """Return ``kind`` between softmaxes at ``temperature``: (N, V) logits and (N, V') logits or a top-k -> (N,) nats.

    Not multiplied by the squared temperature. Raises as ``partition``.
    """
    return kind.value(*partition(student_logits, teacher, temperature))


def forward_kl(student_logits: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student), (N,) nats; see ``ForwardKL`` and ``divergence``."""
    return divergence(ForwardKL(), student_logits, teacher, temperature)


def reverse_kl(student_logits: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """Return KL(student || teacher), (N,) nats; see ``ReverseKL`` and ``divergence``."""
    return divergence(ReverseKL(), student_logits, teacher, temperature)


def jsd(student_logits: Tensor, teacher: Tensor | TopK, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Return generalised Jensen-Shannon divergence, (N,) nats; see ``JSD`` and ``divergence``."""
    return divergence(JSD(beta), student_logits, teacher, temperature)


def skew_kl(student_logits: Tensor, teacher: Tensor | TopK, temperature: float = 1.0, alpha: float = 0.1) -> Tensor:
    """Skew KL, (N,) nats; see ``SkewKL`` and ``divergence``."""
    return divergence(SkewKL(alpha), student_logits, teacher, temperature)
