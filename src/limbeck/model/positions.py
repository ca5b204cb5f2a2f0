"""Rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.model.config import Llama3Scaling, Rope

__all__ = ["Rotary", "circled", "half_split_rows", "interleaved_rows", "inverse_frequencies", "rotate"]

_FEW = 64  # positions whose angles are computed rather than looked up, past the context


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """(head_dim / 2,) float64 angle per position of each pair of dimensions (Su et al. 2021, eq. 15)."""
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    inverse = rope.theta**-pair
    return inverse if rope.scaling is None else _llama3(inverse, rope.scaling)


def _llama3(inverse: Tensor, s: Llama3Scaling) -> Tensor:
    """Stretch long wavelengths by ``factor``, keep short ones, blend between (Llama 3.1 model card)."""
    wavelength = 2 * math.pi / inverse
    blend = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * inverse / s.factor + blend * inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of ``x`` (B, H, T, D) by the angles of ``cos``, ``sin`` (B, 1, T, D/2).

    The arithmetic is in the tables' dtype (at least fp32); the result has ``x``'s dtype.
    """
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def circled(positions: Tensor, context: int, sinks: int) -> Tensor:
    """Return ``positions`` with those past ``context`` sent back to just behind the ``sinks``, again and again.

    An approximation for learned positions, which end at ``context``: distances within a window stay right but where the
    circle closes, since there a key has a higher position than its query. No published model was trained for it.
    """
    return positions.where(positions < context, sinks + (positions - sinks) % (context - sinks))


def half_split_rows(heads: int, head_dim: int) -> Tensor:
    """(heads * head_dim,) int64: order in which to take the rows of a query or key matrix of the interleaved
    convention (pairs (2i, 2i + 1): the paper, Meta's Llama files, llama.cpp) to get the half-split one used here and in
    transformers (pairs (i, i + D/2)): ``half = interleaved[half_split_rows(H, D)]``.
    """
    return torch.arange(heads * head_dim).view(heads, head_dim // 2, 2).transpose(1, 2).reshape(-1)


def interleaved_rows(heads: int, head_dim: int) -> Tensor:
    """(heads * head_dim,) int64: the way back, ``interleaved = half[interleaved_rows(H, D)]``."""
    return torch.arange(heads * head_dim).view(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


class Rotary:
    """Tables of cosines and sines, made in float64 and grown on demand.

    Not a module: the tables hold no state, and casting the model (or building it on the meta device) must not touch
    them. They double as longer sequences come, up to ``context`` and past it only where a sequence is longer, so that
    a model of a very long context costs nothing until it is used.
    """

    def __init__(self, rope: Rope, head_dim: int, context: int) -> None:
        self.inverse = inverse_frequencies(rope, head_dim)
        self.context = context
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def tables(self, positions: Tensor, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Look up ``positions`` (B, T), all below ``longest``: cos and sin, each (B, 1, T, head_dim / 2)."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if longest > self.context and positions.numel() <= _FEW:
            angle = positions.double().cpu()[:, None, :, None] * self.inverse  # no table grows with endless text
            return angle.cos().to(positions.device, wide), angle.sin().to(positions.device, wide)
        key = (positions.device, wide)
        if key not in self._tables or self._tables[key][0].shape[0] < longest:
            held = self._tables[key][0].shape[0] if key in self._tables else 128
            size = max(longest, min(2 * held, self.context))
            angle = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] * self.inverse
            self._tables[key] = (angle.cos().to(positions.device, wide), angle.sin().to(positions.device, wide))
        cos, sin = self._tables[key]
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
