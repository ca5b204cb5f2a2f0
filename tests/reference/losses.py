"""Slow, obvious losses: whole logits, plain autograd or numpy, one formula after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

IGNORE = -100


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    return np.exp(log_softmax(logits / temperature, axis=-1))


def divergence(name: str, student: NDArray[np.float64], teacher: NDArray[np.float64], skew: float) -> float:
    """One row's divergence from probabilities, by scipy's rel_entr."""
    p, q = teacher, student
    if name == "forward_kl":
        return float(rel_entr(p, q).sum())
    if name == "reverse_kl":
        return float(rel_entr(q, p).sum())
    m = skew * p + (1 - skew) * q
    if name == "jsd":
        return float(skew * rel_entr(p, m).sum() + (1 - skew) * rel_entr(q, m).sum())
    assert name == "skew_kl"
    return float(rel_entr(p, m).sum())


def merge(probabilities: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    """Merge all outcomes but ``ids`` into one last bucket."""
    kept = probabilities[list(ids)]
    rest = np.delete(probabilities, list(ids))
    return np.append(kept, rest.sum()) if rest.size else kept


def plain_nll(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum over labelled rows of ``logsumexp(logits) - logits[label]`` from whole logits."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    keep = labels != IGNORE
    chosen = logits[keep].gather(1, labels[keep][:, None])[:, 0]
    return (torch.logsumexp(logits[keep], dim=1) - chosen).sum()


def plain_z(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = hidden @ weight.T + (0 if bias is None else bias)
    return (torch.logsumexp(logits[labels != IGNORE], dim=1) ** 2).sum()


def plain_divergence(
    name: str, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, skew: float
) -> Tensor:
    """Sum over masked rows from whole logits of equal width, by the formulas on probabilities."""
    q, p = (torch.softmax(x[mask] / temperature, dim=1) for x in (student, teacher))
    if name == "forward_kl":
        return (p * (p.log() - q.log())).sum()
    if name == "reverse_kl":
        return (q * (q.log() - p.log())).sum()
    m = skew * p + (1 - skew) * q
    kl_p = (p * (p.log() - m.log())).sum()
    if name == "skew_kl":
        return kl_p
    return skew * kl_p + (1 - skew) * (q * (q.log() - m.log())).sum()


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of the k likeliest tokens of each row."""
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    values, ids = log_probs.topk(k, dim=-1)
    return values, ids


class Scaled(nn.Module):
    """A head that is no plain linear layer: logits times a learned gain; holds a frozen buffer besides."""

    def __init__(self, width: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        self.gain = nn.Parameter(torch.tensor(1.3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain


class Largest(TorchDispatchMode):
    """Records the largest tensor, in elements, that any operation returns while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def relative(a: Tensor, b: Tensor) -> float:
    """Difference in norm, relative to ``b``'s where that is not next to nothing."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-5))
