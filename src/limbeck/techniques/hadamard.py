"""Orthogonal matrices that spread every column's size over all: Hadamard's where there is one, else random blocks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["mean_keeping", "randomized", "spreading"]


def _prime(n: int) -> bool:
    return n > 2 and all(n % d for d in range(2, int(n**0.5) + 1))


def _jacobsthal(q: int) -> Tensor:
    """Return (q, q) Q[i, j] = 1 where i - j is a square modulo the prime ``q``, -1 where it is none, 0 where i = j."""
    squares = {x * x % q for x in range(1, q)}
    sign = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)], dtype=torch.float64)
    at = torch.arange(q)
    return sign[(at[:, None] - at[None, :]) % q]


def _paley(n: int) -> Tensor | None:
    """Return a Hadamard matrix of order ``n`` by Paley's first or second construction (1933); None where neither is.

    The first needs a prime n - 1 = 3 (mod 4): 4, 8, 12, 20, 24, 32, ...; the second a prime n / 2 - 1 = 1 (mod 4): 12,
    28, 36, 60, ... (Prime powers would serve too.)
    """
    q = n - 1
    if q % 4 == 3 and _prime(q):
        skew = torch.zeros(n, n, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return skew + torch.eye(n, dtype=torch.float64)
    q = n // 2 - 1
    if n % 2 == 0 and q % 4 == 1 and _prime(q):
        core = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _jacobsthal(q)
        one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(core, one) + torch.kron(torch.eye(q + 1, dtype=torch.float64), other)
    return None


@cache
def _hadamard(n: int) -> Tensor | None:
    """Return (n, n) of 1 and -1 with orthogonal rows, first column all 1; None where no construction has the order."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    found = None
    if n % 2 == 0 and (half := _hadamard(n // 2)) is not None:
        found = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)
    if found is None and (found := _paley(n)) is None:
        return None
    return found * found[:, :1]


def spreading(n: int, generator: torch.Generator) -> Tensor:
    """Return an (n, n) float64 orthogonal matrix whose first column is constant.

    A Hadamard matrix over sqrt(n) where a construction is known; else the Kronecker product of the one for the powers
    of two in ``n`` with a random orthogonal block for the odd rest.
    """
    whole: Tensor | None = _hadamard(n)
    if whole is not None:
        scaled: Tensor = whole / n**0.5
        return scaled
    two = n & -n
    block = torch.randn(n // two, n // two, generator=generator, dtype=torch.float64)
    block[:, 0] = 1
    block, triangle = torch.linalg.qr(block)
    block *= triangle.diagonal().sign()
    even = _hadamard(two)
    assert even is not None
    return torch.kron(even / two**0.5, block.contiguous())


def _signs(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def randomized(n: int, generator: torch.Generator) -> Tensor:
    """Return an (n, n) float64 orthogonal matrix: random signs, then ``spreading`` (Tseng et al. 2024, section 3)."""
    return _signs(n, generator)[:, None] * spreading(n, generator)


def mean_keeping(n: int, generator: torch.Generator) -> Tensor:
    """Return an (n, n) float64 orthogonal matrix that keeps the vector of ones: it commutes with subtracting a mean.

    In the basis of ``spreading``, whose first vector is constant, the others are permuted and get random signs.
    """
    basis, turned = spreading(n, generator), torch.zeros(n, n, dtype=torch.float64)
    turned[0, 0] = 1
    turned[1 + torch.arange(n - 1), 1 + torch.randperm(n - 1, generator=generator)] = _signs(n - 1, generator)
    return basis @ turned @ basis.T
