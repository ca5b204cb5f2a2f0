"""The neutral layout of a quantized matrix: codes, scales and zeros, and how they read back as numbers.

Every quantizer writes it, every file stores it, every backend packs from it (``docs/quantized-layout.md``):

- ``codes``: fp64/fp32/bf16/fp16: the cast matrix (R, C); fp8: float8 (R, C); int8: int8 (R, C), -128..127;
  int4: uint8 (R, ceil(C / 2)), column 2j in the low and 2j + 1 in the high nibble, nibbles 0..15.
- ``scales`` (R, ceil(C / span)), or (R, 1) for one a row, or (1, 1) for one a matrix; absent for plain casts.
- ``zeros``: of the shape and dtype of ``scales``; only where ``offset``.

A number is ``code * scale`` where symmetric (int4: ``(nibble - 8) * scale``) and ``code * scale + zero`` with an offset
(int4: ``nibble * scale + zero``): a zero is the value of code 0, as in Q4_1. Nothing is padded: the last group of a
row may be short, and the last nibble of an odd row is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

__all__ = ["CODE_DTYPES", "Codes", "Layout", "pack_int4", "unpack_int4"]

CODE_DTYPES: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int4": torch.uint8,
}
"""Stored dtype of the codes of each kind."""


def pack_int4(nibbles: Tensor) -> Tensor:
    """Pack (R, C) integers 0..15 two a byte: (R, ceil(C / 2)) uint8, the even column in the low nibble."""
    nibbles = nibbles.to(torch.uint8)
    if nibbles.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(codes: Tensor, columns: int) -> Tensor:
    """Undo ``pack_int4``: (R, ceil(C / 2)) uint8 -> (R, C) uint8, 0..15."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)[:, :columns]


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and meaning of one quantized matrix.

    Attributes:
        kind: a key of ``CODE_DTYPES``.
        rows: R, output features or vocabulary rows.
        columns: C, input features or embedding width.
        span: columns that share a scale; ``columns``: one scale a row; 0: one a matrix.
        scale_dtype: of scales and zeros; None: a plain cast without scales.
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
        return self.rows, ceil(self.columns / 2) if self.kind == "int4" else self.columns

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
        return codes + scales * (2 if self.offset else 1)

    def empty(self, device: torch.device | str) -> Codes:
        """Return codes of this layout with nothing in them, to load into; on "meta" without memory."""
        codes = torch.empty(self.code_shape, dtype=CODE_DTYPES[self.kind], device=device)
        if self.scale_dtype is None:
            return Codes(self, codes)
        scales = torch.empty(self.scale_shape, dtype=self.scale_dtype, device=device)
        return Codes(self, codes, scales, torch.empty_like(scales) if self.offset else None)


@dataclass(frozen=True, slots=True)
class Codes:
    """One quantized matrix in the neutral layout."""

    layout: Layout
    codes: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (R, C) numbers in ``dtype``; the arithmetic is fp32, fp64 for fp64, and rounds once at the end."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        numbers = self.integers().to(wide)
        if self.scales is None:
            return numbers.to(dtype)
        numbers = numbers * self._spread(self.scales, wide)
        if self.zeros is not None:
            numbers = numbers + self._spread(self.zeros, wide)
        return numbers.to(dtype)

    def integers(self) -> Tensor:
        """Return (R, C) codes by which scales are multiplied, unpacked: int8 for integers, else as stored."""
        if self.layout.kind != "int4":
            return self.codes
        nibbles = unpack_int4(self.codes, self.layout.columns).to(torch.int8)
        return nibbles if self.layout.offset else nibbles - 8

    def _spread(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Scales or zeros, broadcastable to (R, C)."""
        x, span, columns = x.to(dtype), self.layout.span, self.layout.columns
        if span == 0 or span >= columns:
            return x
        return x.repeat_interleave(span, dim=1)[:, :columns]

    def take(self, index: Tensor | slice) -> Codes:
        """Return some rows, in the order of ``index`` (N,) or of a slice, as codes of their own."""
        codes = self.codes.view(torch.uint8)[index].view(self.codes.dtype)  # float8 has no gather of its own
        layout = replace(self.layout, rows=codes.shape[0])
        if self.scales is None or self.layout.span == 0:
            return Codes(layout, codes, self.scales, self.zeros)
        return Codes(layout, codes, self.scales[index], None if self.zeros is None else self.zeros[index])
