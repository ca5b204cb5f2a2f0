"""Rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.model.config import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, Rope, YarnScaling

__all__ = ["Rotary", "circled", "interleaved_rows", "inverse_frequencies", "rotate"]

_FEW = 64  # positions whose angles are computed rather than looked up, past the context


def inverse_frequencies(rope: Rope, rotary_width: int, longest: int = 0) -> Tensor:
    """Return (rotary_width / 2,) float64 angle per position of each pair of dimensions (Su et al. 2021, eq. 15).

    Args:
        rope: base and scaling.
        rotary_width: columns of a head that are rotated.
        longest: tokens of the longest sequence, on which some scalings depend.
    """
    pair = torch.arange(0, rotary_width, 2, dtype=torch.float64, device="cpu") / rotary_width
    s = rope.scaling
    if isinstance(s, DynamicScaling):
        stretch = s.factor * max(longest, s.original_context) / s.original_context - (s.factor - 1)
        base: float = rope.theta * stretch ** (rotary_width / (rotary_width - 2))
        return base**-pair
    inverse = rope.theta**-pair
    if isinstance(s, LinearScaling):
        return inverse / s.factor
    if isinstance(s, LongScaling):
        factors = s.long if longest > s.original_context else s.short
        return inverse / torch.tensor(factors, dtype=torch.float64, device="cpu")
    if isinstance(s, YarnScaling):
        return _yarn(inverse, rope.theta, s)
    return inverse if s is None else _llama3(inverse, s)


def _yarn(inverse: Tensor, theta: float, s: YarnScaling) -> Tensor:
    """Divide frequencies of fewer turns than ``beta_slow`` by ``factor``, blend up to ``beta_fast`` (eq. 11 to 13)."""
    width = 2 * len(inverse)

    def dimension(turns: float) -> float:
        return width * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(len(inverse), dtype=torch.float64, device="cpu") - low) / span).clamp(0, 1)
    return inverse / s.factor * ramp + inverse * (1 - ramp)


def _llama3(inverse: Tensor, s: Llama3Scaling) -> Tensor:
    """Stretch long wavelengths by ``factor``, keep short ones, blend between (Llama 3.1 model card)."""
    wavelength = 2 * math.pi / inverse
    blend = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * inverse / s.factor + blend * inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + R/2) of the first R columns of ``x`` (B, H, T, D) by the angles of ``cos``, ``sin``
    (B, 1, T, R/2).

    The arithmetic is in the tables' dtype (at least fp32); the result has ``x``'s dtype.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def circled(positions: Tensor, context: int, sinks: int) -> Tensor:
    """Return ``positions`` with those past ``context`` sent back to just behind the ``sinks``, again and again.

    An approximation for learned positions, which end at ``context``: distances within a window stay right but where the
    circle closes, since there a key has a higher position than its query. No published model was trained for it.
    """
    return positions.where(positions < context, sinks + (positions - sinks) % (context - sinks))


def interleaved_rows(heads: int, head_dim: int) -> Tensor:
    """Return (heads * head_dim,) int64: order in which to take the rows of a query or key matrix of the half-split
    convention used here and in transformers (pairs (i, i + D/2)) to get the interleaved one (pairs (2i, 2i + 1): the
    paper, Meta's Llama files, llama.cpp): ``interleaved = half[interleaved_rows(H, D)]``.
    """
    return torch.arange(heads * head_dim).view(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


class Rotary:
    """Tables of cosines and sines, made in float64 and grown on demand.

    Not a module: the tables hold no state, and casting the model (or building it on the meta device) must not touch
    them. They double as longer sequences come, up to ``context`` and past it only where a sequence is longer, so that
    a model of a very long context costs nothing until it is used.
    """

    def __init__(self, rope: Rope, rotary_width: int, context: int) -> None:
        self.rope, self.rotary_width = rope, rotary_width
        self.inverse = inverse_frequencies(rope, rotary_width)
        self.context = context
        self._made_for = 0  # longest sequence that ``inverse`` was made for, where it depends on that
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def tables(self, positions: Tensor, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Look up ``positions`` (B, T), all below ``longest``: cos and sin, each (B, 1, T, rotary_width / 2)."""
        scaling = self.rope.scaling
        if isinstance(scaling, DynamicScaling | LongScaling):
            self._adapt(positions, longest, scaling.original_context)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        magnitude = scaling.magnitude if isinstance(scaling, YarnScaling | LongScaling) else 1.0
        if longest > self.context and positions.numel() <= _FEW:
            angle = positions.double().cpu()[:, None, :, None] * self.inverse  # no table grows with endless text
            cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
            return cos.to(positions.device, wide), sin.to(positions.device, wide)
        key = (positions.device, wide)
        if key not in self._tables or self._tables[key][0].shape[0] < longest:
            held = self._tables[key][0].shape[0] if key in self._tables else 128
            size = max(longest, min(2 * held, self.context))
            angle = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] * self.inverse
            cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
            self._tables[key] = (cos.to(positions.device, wide), sin.to(positions.device, wide))
        cos, sin = self._tables[key]
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)

    def _adapt(self, positions: Tensor, longest: int, original: int) -> None:
        """Make the frequencies for the longest sequence of this call, padding aside, where it is past ``original``."""
        length = int(positions.max()) + 1 if longest > original else 0
        length = length if length > original else 0
        if length != self._made_for:
            self._made_for = length
            self.inverse = inverse_frequencies(self.rope, self.rotary_width, length)
            self._tables.clear()
