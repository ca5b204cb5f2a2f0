"""Loss terms: a sum, its own count and a weight; the one place where a mean is formed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Counts", "Term", "Terms", "add_counts", "total"]


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of a loss over one micro-batch.

    Attributes:
        sum: scalar tensor, the *sum* of the per-item losses in nats; it carries the gradient.
        count: how many items (tokens, sequences, pairs) the sum runs over, here alone.
        weight: the coefficient in the whole loss.
    """

    sum: Tensor
    count: float
    weight: float = 1.0


Terms = Mapping[str, Term]
Counts = Mapping[str, float]


def add_counts(counts: Iterable[Counts]) -> dict[str, float]:
    """Add the counts of several micro-batches (and, by the caller, of several ranks), name by name."""
    out: dict[str, float] = {}
    for one in counts:
        for name, count in one.items():
            out[name] = out.get(name, 0.0) + float(count)
    return out


def total(terms: Terms, global_counts: Counts) -> Tensor:
    """Return ``sum_i weight_i * sum_i / global_count_i``: this micro-batch's share of the mean loss.

    Each term is divided once, by its own count over the whole optimizer step (I1). A term whose global count is
    zero has nothing to add and is left out; if that is every term, there is nothing to learn and it is an error
    of the caller.

    Raises:
        ValueError: every term's global count is zero.
    """
    shares = [t.sum * (t.weight / global_counts[name]) for name, t in terms.items() if global_counts[name] > 0]
    if not shares:
        raise ValueError("every loss term has a count of zero: the batch holds nothing to learn")
    out = shares[0]
    for share in shares[1:]:
        out = out + share
    return out
