"""The neutral layout of a quantized matrix: codes, scales and zeros, and how they read back as numbers.

Every quantizer writes it, every file stores it, every backend packs from it (``docs/quantized-layout.md``):

- ``codes``: fp64/fp32/bf16/fp16: the cast matrix (R, C); fp8: float8 (R, C); int8: int8 (R, C), -128..127;
  int2 to int7 and nf4: uint8 (R, ceil(C x bits / 8)), a row's codes one behind the other from the lowest bit on, so in
  int4 column 2j in the low and 2j + 1 in the high nibble, 0..15.
- ``scales`` (R, ceil(C / span)), or (R, 1) for one a row, or (1, 1) for one a matrix; absent for plain casts.
- ``zeros``: of the shape and dtype of ``scales``; only where ``offset``.
- ``second``: where scales are themselves codes of eight bits (double quantization): their mean, then the largest
  distance from it of each 256 scales, fp32.

A number is ``code * scale`` where symmetric (int4: ``(nibble - 8) * scale``; nf4: ``NF4[nibble] * scale``) and
``code * scale + zero`` with an offset (int4: ``nibble * scale + zero``): a zero is the value of code 0, as in Q4_1.
Nothing is padded: the last group of a row may be short, and the last bits of a row are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import torch
from torch import Tensor

__all__ = [
    "CODE_DTYPES",
    "DOUBLE",
    "NARROW",
    "NF4",
    "SECOND_SPAN",
    "Codes",
    "Layout",
    "dynamic_map",
    "pack",
    "pack_int4",
    "unpack",
    "unpack_int4",
]

CODE_DTYPES: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    **{f"int{bits}": torch.uint8 for bits in (2, 3, 4, 5, 6, 7)},
    "nf4": torch.uint8,
}
"""Stored dtype of the codes of each kind."""

NARROW: Mapping[str, int] = {**{f"int{bits}": bits for bits in (2, 3, 4, 5, 6, 7)}, "nf4": 4}
"""Bits of a code of each kind whose codes share bytes; they are counted from 0."""

# Dettmers et al. 2023, QLoRA, appendix E: quantiles of a normal distribution, scaled to -1 and 1, with a zero
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Numbers of the codes of nf4, by ascending size."""

DOUBLE = torch.uint8
"""``scale_dtype`` of scales that are codes of ``dynamic_map``."""

SECOND_SPAN = 256
"""Scales, row by row, that share one scale of their own."""


@cache
def dynamic_map() -> Tensor:
    """Return (256,) ascending numbers, fp32, to 1: a sign, an exponent of ten by its leading zeros, a linear rest.

    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 1.3, as bitsandbytes lays it out.
    """
    numbers = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        numbers += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(numbers), dtype=torch.float32)


def pack_int4(nibbles: Tensor) -> Tensor:
    """Pack (R, C) integers 0..15 two a byte: (R, ceil(C / 2)) uint8, the even column in the low nibble."""
    nibbles = nibbles.to(torch.uint8)
    if nibbles.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(codes: Tensor, columns: int) -> Tensor:
    """Undo ``pack_int4``: (R, ceil(C / 2)) uint8 -> (R, C) uint8, 0..15."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)[:, :columns]


def pack(codes: Tensor, kind: str) -> Tensor:
    """Lay codes (R, C) out as they are stored: narrow ones, from 0, share bytes; others stay."""
    if kind not in NARROW:
        return codes
    bits = NARROW[kind]
    if bits == 4:
        return pack_int4(codes)
    every = (codes.to(torch.uint8)[:, :, None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    stream = torch.nn.functional.pad(every.flatten(1), (0, -(codes.shape[1] * bits) % 8))
    places = 1 << torch.arange(8, dtype=torch.int32, device=codes.device)
    packed: Tensor = (stream.view(codes.shape[0], -1, 8) * places).sum(dim=-1)
    return packed.to(torch.uint8)


def unpack(codes: Tensor, columns: int, kind: str) -> Tensor:
    """Undo ``pack``: (R, C) uint8 from 0 of a narrow kind, (R, C) as stored of others."""
    if kind not in NARROW:
        return codes
    bits = NARROW[kind]
    if bits == 4:
        return unpack_int4(codes, columns)
    # a code lies in at most two bytes: read both as one number, shift, and cut
    first = torch.arange(columns, device=codes.device) * bits
    padded = torch.nn.functional.pad(codes, (0, 1)).to(torch.int16)
    pair = padded[:, first // 8] | (padded[:, first // 8 + 1] << 8)
    cut: Tensor = (pair >> (first % 8).to(torch.int16)) & (2**bits - 1)
    return cut.to(torch.uint8)


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and meaning of one quantized matrix.

    Attributes:
        kind: a key of ``CODE_DTYPES``.
        rows: R, output features or vocabulary rows.
        columns: C, input features or embedding width.
        span: columns that share a scale; ``columns``: one scale a row; 0: one a matrix.
        scale_dtype: of scales and zeros; None: a plain cast without scales; ``DOUBLE``: codes with their own scales.
        offset: a zero beside every scale (asymmetric).
    """

    kind: str
    rows: int
    columns: int
    span: int = 0
    scale_dtype: torch.dtype | None = None
    offset: bool = False

    @property
    def code_shape(self) -> tuple[int, int]:
        """Shape of the stored codes."""
        return self.rows, ceil(self.columns * NARROW[self.kind] / 8) if self.kind in NARROW else self.columns

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of scales and zeros."""
        return (self.rows, ceil(self.columns / self.span)) if self.span else (1, 1)

    @property
    def bytes(self) -> int:
        """Exact bytes of codes, scales and zeros, in memory and in a file."""
        codes = self.code_shape[0] * self.code_shape[1] * CODE_DTYPES[self.kind].itemsize
        if self.scale_dtype is None:
            return codes
        scales = self.scale_shape[0] * self.scale_shape[1] * self.scale_dtype.itemsize
        return codes + scales * (2 if self.offset else 1) + 4 * self.second_size

    @property
    def second_size(self) -> int:
        """Numbers of ``second``; 0 where scales are no codes."""
        count = self.scale_shape[0] * self.scale_shape[1]
        return 1 + ceil(count / SECOND_SPAN) if self.scale_dtype == DOUBLE else 0

    def empty(self, device: torch.device | str) -> Codes:
        """Return codes of this layout with nothing in them, to load into; on "meta" without memory."""
        codes = torch.empty(self.code_shape, dtype=CODE_DTYPES[self.kind], device=device)
        if self.scale_dtype is None:
            return Codes(self, codes)
        scales = torch.empty(self.scale_shape, dtype=self.scale_dtype, device=device)
        second = torch.empty(self.second_size, device=device) if self.second_size else None
        return Codes(self, codes, scales, torch.empty_like(scales) if self.offset else None, second)


@dataclass(frozen=True, slots=True)
class Codes:
    """One quantized matrix in the neutral layout."""

    layout: Layout
    codes: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    second: Tensor | None = None

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (R, C) numbers in ``dtype``; the arithmetic is fp32, fp64 for fp64, and rounds once at the end."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        numbers = self.integers().to(wide)
        scales = self.scale_numbers()
        if scales is None:
            return numbers.to(dtype)
        numbers = numbers * self._spread(scales, wide)
        if self.zeros is not None:
            numbers = numbers + self._spread(self.zeros, wide)
        return numbers.to(dtype)

    def integers(self) -> Tensor:
        """Return (R, C) numbers that scales multiply, unpacked: int8 for integers, fp32 for nf4, else as stored."""
        kind = self.layout.kind
        if kind not in NARROW:
            return self.codes
        codes = unpack(self.codes, self.layout.columns, kind)
        if kind == "nf4":
            return torch.tensor(NF4, device=codes.device)[codes.int()]
        codes = codes.to(torch.int8)
        return codes if self.layout.offset else codes - 2 ** (NARROW[kind] - 1)

    def scale_numbers(self) -> Tensor | None:
        """Return the scales as numbers, of the shape in which they are stored: fp32 where those are codes."""
        if self.scales is None or self.second is None:
            return self.scales
        numbers = dynamic_map().to(self.scales.device)[self.scales.int()].flatten()
        size = self.second[1:].repeat_interleave(SECOND_SPAN)[: len(numbers)]
        return (numbers * size + self.second[0]).view(self.scales.shape)

    def _spread(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Scales or zeros, broadcastable to (R, C)."""
        x, span, columns = x.to(dtype), self.layout.span, self.layout.columns
        if span == 0 or span >= columns:
            return x
        return x.repeat_interleave(span, dim=1)[:, :columns]

    def take(self, index: Tensor | slice) -> Codes:
        """Return some rows, in the order of ``index`` (N,) or of a slice, as codes of their own."""
        codes = self.codes.view(torch.uint8)[index].view(self.codes.dtype)  # float8 has no gather of its own
        layout, scales = replace(self.layout, rows=codes.shape[0]), self.scale_numbers()
        if self.second is not None:  # scales of scales span rows
            layout = replace(layout, scale_dtype=torch.float32)
        if scales is None or self.layout.span == 0:
            return Codes(layout, codes, scales, self.zeros)
        return Codes(layout, codes, scales[index], None if self.zeros is None else self.zeros[index])
