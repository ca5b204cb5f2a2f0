"""Grids: scales, rounding and packing, shared by every quantizer.

A ``Grid`` says which numbers a weight may take. ``encode`` chooses scales and codes for a matrix; the neutral layout of
the result and its decoding are in ``kernels/packed_layout.py``, so that what runs needs no technique.

Rounding is to the nearest code, halves to even; scales are rounded to their stored dtype first, so that the codes are
the best for the scales that are kept. The grids named ``q8_0``, ``q4_0`` and ``q4_1`` are those of GGUF files, and
follow ggml's reference quantizers (ggml-quants.c) in every bit: fp32 arithmetic, codes by the scale before it is
rounded to fp16, halves away from zero (Q8_0) or up (Q4_0, Q4_1).
"""

from __future__ import annotations

from math import ceil
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.config import Config
from limbeck.errors import TechniqueError
from limbeck.kernels.packed_layout import (
    CODE_DTYPES,
    DOUBLE,
    NARROW,
    NF4,
    SECOND_SPAN,
    Codes,
    Layout,
    dynamic_map,
    pack,
)

__all__ = [
    "Grid",
    "Scales",
    "as_kept",
    "codes_of",
    "encode",
    "measure",
    "nearest_codes",
    "numbers_of",
    "search",
    "spread",
    "means",
    "stored",
    "wide",
]

Format = Literal[
    "fp64", "fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int7", "int6", "int5", "int4", "int3", "int2",
    "nf4", "q8_0", "q4_0", "q4_1",
]  # fmt: skip

_GGUF = {"q8_0": ("int8", True), "q4_0": ("int4", True), "q4_1": ("int4", False)}
_INTEGERS = {f"int{bits}": bits for bits in range(2, 9)}
_LARGEST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0, "nf4": 1.0}  # code that the largest |w| takes
_LARGEST |= {kind: 2.0 ** (bits - 1) - 1 for kind, bits in _INTEGERS.items()}
_RATIOS = tuple(1 - 0.025 * i for i in range(25))  # 1.0 down to 0.4 of the largest value


class Grid(Config):
    """Which numbers a weight may take; a bare format name stands for its defaults.

    Integers take int8 codes -128..127 (scale: largest magnitude / 127), int4 codes -8..7 (/ 7), and so on from int2 to
    int7; asymmetric ones 2**bits even steps from the smallest value of a group to its largest. nf4 has 16 quantiles of
    a normal distribution (Dettmers et al. 2023) scaled to a group's largest magnitude. fp8
    scales the largest magnitude to 448 (e4m3) or 57,344 (e5m2).
    """

    format: Format = Field("int8", description="format of the numbers that are stored")
    symmetric: bool = Field(True, description="zero is a code's value; false: integers with an offset")
    granularity: Literal["none", "tensor", "channel", "group"] = Field(
        "channel",
        description="what shares a scale; default: channel, group for GGUF and below 8 bits, none for plain casts",
    )
    group_size: Literal[0, 32, 64, 128] = Field(
        0,
        description="columns of a group; default 32 where granularity is group, 64 for nf4",
        json_schema_extra={"old_name": "group"},
    )
    scale_dtype: Literal["fp16", "fp32", "double"] = Field(
        "fp32",
        description="of stored scales; default: fp16 for groups, double for nf4: 8-bit codes with scales per 256",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"format": values}
        if not isinstance(values, dict):
            return values
        v: dict[str, Any] = {"format": "int8", **cls.current(values)}
        if v["format"] in _GGUF:
            fixed = {
                "symmetric": _GGUF[v["format"]][1],
                "granularity": "group",
                "group_size": 32,
                "scale_dtype": "fp16",
            }
            for key, value in fixed.items():
                if v.setdefault(key, value) != value:
                    raise ValueError(f"format {v['format']} fixes {key} to {value}: leave it out")
            return v
        plain = v["format"] in ("fp64", "fp32", "bf16", "fp16")
        grouped, nf4 = v["format"] in NARROW or v.get("group_size"), v["format"] == "nf4"
        v.setdefault("granularity", "none" if plain else "group" if grouped else "channel")
        v.setdefault("group_size", (64 if nf4 else 32) if v["granularity"] == "group" else 0)
        v.setdefault("scale_dtype", "double" if nf4 else "fp16" if v["granularity"] == "group" else "fp32")
        return v

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        plain = self.format in ("fp64", "fp32", "bf16", "fp16")
        if plain != (self.granularity == "none"):
            raise ValueError(f"format {self.format} {'takes no' if plain else 'needs a'} granularity of scales")
        if (self.granularity == "group") != (self.group_size > 0):
            raise ValueError(f"a group of {self.group_size} columns does not go with granularity '{self.granularity}'")
        if not self.symmetric and self.kind not in _INTEGERS:
            raise ValueError(f"format {self.format} is symmetric: only integers take an offset")
        if self.scale_dtype == "double" and self.kind != "nf4":
            raise ValueError(f"format {self.format} takes no double scale_dtype: it is nf4's; choose fp16 or fp32")
        return self

    @property
    def kind(self) -> str:
        """Kind of its codes in the neutral layout."""
        return _GGUF[self.format][0] if self.format in _GGUF else self.format

    @property
    def gguf(self) -> bool:
        """Are these the numbers of a GGUF block type?"""
        return self.format in _GGUF

    @property
    def bits(self) -> int:
        """Bits of one code, scales aside."""
        return NARROW.get(self.kind, 8 * CODE_DTYPES[self.kind].itemsize)

    @property
    def middle(self) -> int:
        """Number that is added to a symmetric integer's code to store it."""
        return 2 ** (NARROW[self.kind] - 1) if self.kind in NARROW else 0

    def layout(self, rows: int, columns: int) -> Layout:
        """Return the neutral layout of a (rows, columns) matrix on this grid; ``layout.bytes`` is its exact size."""
        if self.granularity == "none":
            return Layout(self.kind, rows, columns)
        span = {"tensor": 0, "channel": columns, "group": self.group_size}[self.granularity]
        dtype = {"fp16": torch.float16, "fp32": torch.float32, "double": DOUBLE}[self.scale_dtype]
        return Layout(self.kind, rows, columns, span, dtype, not self.symmetric)


class Scales(NamedTuple):
    """Scales of a matrix as stored, and as rounding uses them; shapes as ``Layout.scale_shape``.

    Attributes:
        scales, zeros: in their stored dtype.
        step, low: the same in the weight's dtype; for GGUF grids before they were rounded to fp16.
        second: scales of the scales, where those are codes.
    """

    scales: Tensor
    zeros: Tensor | None
    step: Tensor
    low: Tensor | None
    second: Tensor | None = None


def measure(weight: Tensor, grid: Grid, ratio: Tensor | float = 1.0) -> Scales:
    """Return scales by the extreme values of each group of ``weight`` (R, C), shrunk by ``ratio`` (clipping what lies
    beyond).

    Raises:
        TechniqueError: the weight, or a scale in fp16, is not finite.
    """
    layout = grid.layout(*weight.shape)
    if not bool(torch.isfinite(weight).all()):
        raise TechniqueError("a weight to quantize holds values that are not finite: the model is damaged")
    groups = _groups(weight.float() if grid.gguf else weight, layout)
    if layout.offset:
        low, high = groups.amin(-1) * ratio, groups.amax(-1) * ratio
        step: Tensor = (high - low) / (2**grid.bits - 1)
        # the value of code 0, which is the lowest of narrow codes (0..15) and the middle of int8's -128..127
        zero = low if grid.kind in NARROW else low + 128 * step
    else:
        step, zero = (_signed_extreme(groups) / -8 if grid.format == "q4_0" else _magnitude(groups, grid)) * ratio, None
    assert layout.scale_dtype is not None
    if layout.scale_dtype == DOUBLE:
        codes, second = _compressed(step.float())
        held = Codes(layout, codes, codes, None, second).scale_numbers()
        assert held is not None
        return Scales(codes, None, held.to(weight.dtype), None, second)
    scales, zeros = step.to(layout.scale_dtype), None if zero is None else zero.to(layout.scale_dtype)
    _check_stored(step, scales, step, grid)
    if zero is not None and zeros is not None:
        _check_stored(zero, zeros, zero.abs() + step * 2**grid.bits, grid)
    return Scales(scales, zeros, step, zero) if grid.gguf else stored(scales, zeros, weight.dtype)


def _compressed(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales (R, G) as codes of ``dynamic_map`` and what those are relative to, as in bitsandbytes' weights.

    The mean is taken off; each 256 of the rest, row by row, are divided by the largest of them.
    """
    mean = scales.mean()
    flat = (scales - mean).flatten()
    parts = torch.nn.functional.pad(flat, (0, -len(flat) % SECOND_SPAN)).view(-1, SECOND_SPAN)
    largest = parts.abs().amax(dim=1)
    scaled = (parts / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).flatten()[: len(flat)]
    numbers = dynamic_map().to(scales.device)
    codes = torch.bucketize(scaled, (numbers[:-1] + numbers[1:]) / 2)
    return codes.to(torch.uint8).view(scales.shape), torch.cat((mean[None], largest))


_LOST = 1 / 64  # of the scales, root mean square: more than half precision rounds away, less than a code's own step


def _check_stored(exact: Tensor, kept: Tensor, size: Tensor, grid: Grid) -> None:
    """Check both ends of the stored dtype's range: large scales would become infinite, small ones lose their digits.

    Args:
        exact: scales, or offsets, before they were rounded.
        kept: as they are stored.
        size: what their rounding is relative to.
        grid: they are of.

    Raises:
        TechniqueError: the stored scales are not those of the weight.
    """
    advice = "set scale_dtype to fp32"
    if grid.gguf:
        advice = f"the fp16 scales of {grid.format} are fixed; choose {grid.kind} with group_size 32, scale_dtype fp32"
    if not bool(torch.isfinite(kept).all()):
        raise TechniqueError(f"a scale is too large for {grid.scale_dtype}: {advice}")
    wide = exact.double()
    lost, whole = float((kept.double() - wide).square().sum()), float(size.double().square().sum())
    if lost > _LOST**2 * whole:
        share = (lost / whole) ** 0.5
        raise TechniqueError(f"scales are too small for {grid.scale_dtype}, {share:.0%} of them is lost: {advice}")


def _magnitude(groups: Tensor, grid: Grid) -> Tensor:
    return groups.abs().amax(-1) / _LARGEST[grid.kind]


def _signed_extreme(groups: Tensor) -> Tensor:
    """Return the first value of largest magnitude of each group, with its sign."""
    size = groups.abs()
    place = torch.arange(groups.shape[-1], device=groups.device)
    first = torch.where(size == size.amax(-1, keepdim=True), place, groups.shape[-1]).amin(-1, keepdim=True)
    return groups.gather(-1, first).squeeze(-1)


def _groups(weight: Tensor, layout: Layout) -> Tensor:
    """(R, G, span) view of the columns; a short last group repeats its last column, which moves no extreme."""
    if layout.span == 0:
        return weight.reshape(1, 1, -1)
    missing = -layout.columns % layout.span
    if missing:
        weight = torch.cat((weight, weight[:, -1:].expand(-1, missing)), dim=1)
    return weight.reshape(weight.shape[0], -1, layout.span)


def nearest_codes(weight: Tensor, scales: Scales, grid: Grid, ggml: bool = False) -> Tensor:
    """Return codes of ``weight`` (R, N) whose every column has the scale at its place in ``scales``, broadcastable to
    (R, N).

    Args:
        weight: in the dtype of ``scales.step``.
        scales: what to divide by.
        grid: the codes there are.
        ggml: round as ggml's quantizers do, else halves to even.

    Returns:
        (R, N) int8 -128..127, uint8 from 0 (int4: 0..15), or float8.
    """
    if ggml:
        return _ggml_codes(weight.float(), scales, grid)
    step = torch.where(scales.step == 0, torch.ones_like(scales.step), scales.step)
    scaled = (weight if scales.low is None else weight - scales.low) / step
    if grid.kind.startswith("fp8"):
        largest = _LARGEST[grid.kind]
        return scaled.clamp(-largest, largest).to(CODE_DTYPES[grid.kind])
    if grid.kind == "nf4":
        levels = torch.tensor(NF4, dtype=torch.float32, device=weight.device).to(scaled.dtype)
        return torch.bucketize(scaled.contiguous(), (levels[:-1] + levels[1:]) / 2).to(torch.uint8)
    middle = 0 if scales.low is not None else grid.middle
    least, most = (-128, 127) if grid.kind == "int8" else (-middle, 2**grid.bits - 1 - middle)
    codes = torch.where(scales.step == 0, torch.zeros_like(scaled), scaled.round()).clamp(least, most).to(torch.int8)
    return codes if grid.kind == "int8" else (codes + middle).to(torch.uint8)


def _ggml_codes(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    inverse = torch.where(scales.step == 0, torch.zeros_like(scales.step), 1 / scales.step)
    if grid.format == "q8_0":
        x = weight * inverse
        away = torch.trunc(x)
        away = away + torch.where((x - away).abs() >= 0.5, x.sign(), torch.zeros_like(x))  # C's roundf
        return away.clamp(-128, 127).to(torch.int8)
    if grid.format == "q4_0":
        return torch.trunc(weight * inverse + 8.5).clamp(0, 15).to(torch.uint8)
    assert scales.low is not None
    return torch.trunc((weight - scales.low) * inverse + 0.5).clamp(0, 15).to(torch.uint8)


def spread(x: Tensor, layout: Layout) -> Tensor:
    """Spread scales (R, G) to one value a column, (R, C), or broadcastable to it where rows share a scale."""
    if layout.span == 0 or layout.span >= layout.columns:
        return x
    return x.repeat_interleave(layout.span, dim=1)[:, : layout.columns]


def stored(scales: Tensor, zeros: Tensor | None, dtype: torch.dtype) -> Scales:
    """Return scales that were chosen already, to round by them as they are stored."""
    return Scales(scales, zeros, scales.to(dtype), None if zeros is None else zeros.to(dtype))


def as_kept(scales: Scales, dtype: torch.dtype) -> Scales:
    """Return ``measure``'s scales, to round by them as they are stored."""
    return scales if scales.second is not None else stored(scales.scales, scales.zeros, dtype)


def numbers_of(codes: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """Return the numbers of ``nearest_codes``'s codes in the dtype of ``scales.step``, as ``Codes.decode`` does."""
    if grid.kind == "nf4":
        return torch.tensor(NF4, device=codes.device).to(scales.step.dtype)[codes.int()] * scales.step
    numbers = codes.to(scales.step.dtype)
    if scales.low is not None:
        return numbers * scales.step + scales.low
    return (numbers - grid.middle) * scales.step


def wide(scales: Scales, layout: Layout) -> Scales:
    """Return the same with one step and low a column."""
    low = None if scales.low is None else spread(scales.low, layout)
    return Scales(scales.scales, scales.zeros, spread(scales.step, layout), low, scales.second)


def codes_of(weight: Tensor, grid: Grid, scales: Scales) -> Codes:
    """Round ``weight`` (R, C) to the grid under given scales, and pack."""
    layout = grid.layout(*weight.shape)
    codes = nearest_codes(weight, wide(scales, layout), grid, ggml=grid.gguf)
    return Codes(layout, pack(codes, grid.kind), scales.scales, scales.zeros, scales.second)


def search(weight: Tensor, grid: Grid) -> Scales:
    """Return scales of each group's range times the ratio, of 25 between 1 and 0.4, of least squared error."""
    layout = grid.layout(*weight.shape)
    best = measure(weight, grid)
    ratio = torch.ones_like(best.step)
    least = torch.full_like(best.step, torch.inf)
    for r in _RATIOS:
        tried = measure(weight, grid, r)
        codes = nearest_codes(weight, wide(tried, layout), grid, ggml=grid.gguf)
        kept = wide(as_kept(tried, weight.dtype), layout)
        error = _sums((numbers_of(codes, kept, grid) - weight) ** 2, layout)
        better = error < least
        ratio, least = torch.where(better, torch.full_like(ratio, r), ratio), torch.where(better, error, least)
    return measure(weight, grid, ratio)


def _sums(x: Tensor, layout: Layout) -> Tensor:
    """Return sums of ``x`` (R, C) over what shares a scale: the shape of the scales."""
    if layout.span == 0:
        return x.sum().view(1, 1)
    missing = -layout.columns % layout.span
    return torch.nn.functional.pad(x, (0, missing)).view(x.shape[0], ceil(layout.columns / layout.span), -1).sum(-1)


def means(x: Tensor, layout: Layout) -> Tensor:
    """Return means of ``x`` (R, C) over what shares a scale: the shape of the scales."""
    return _sums(x, layout) / _sums(torch.ones_like(x), layout)


@torch.no_grad()
def encode(weight: Tensor, grid: Grid, clip: Literal["none", "search"] = "none") -> Codes:
    """Put ``weight`` (R, C) on the grid by rounding to nearest.

    Args:
        weight: any floating dtype; halves are read as fp32.
        grid: the numbers it may take.
        clip: "search" tries smaller ranges for each scale and keeps the one of least squared error.

    Raises:
        TechniqueError: the weight holds values that are not finite, or that the format cannot hold.
    """
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    if grid.granularity == "none":
        codes = weight.to(CODE_DTYPES[grid.kind]).contiguous()
        if not bool(torch.isfinite(codes).all()):
            raise TechniqueError(f"a weight holds values that {grid.format} cannot hold: choose bf16 or fp32")
        lost, whole = float((codes.double() - weight.double()).square().sum()), float(weight.double().square().sum())
        if lost > _LOST**2 * whole:
            raise TechniqueError(f"a weight holds values too small for {grid.format}: choose bf16 or fp32")
        return Codes(grid.layout(*weight.shape), codes)
    return codes_of(weight, grid, search(weight, grid) if clip == "search" else measure(weight, grid))
