"""How the keys, or the values, of a cache are kept: as they are, in int8, or in int4."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from limbeck.kernels.packed_layout import pack_int4, unpack_int4

__all__ = ["KVKind", "Store"]

KVKind = Literal["model", "int8", "int4"]
"""What keys and values are kept in: the model's own dtype; int8 with one fp32 scale a token and head; int4 from the
least to the largest number of each 32 of a token and head, with an fp16 step and least number."""

_GROUP = 32  # columns of a head that share a step in int4


class Store:
    """Vectors (B, KV, S, D) of each layer, S its slots.

    Attributes:
        data: of each layer (B, KV, S, D) in the model's dtype or int8, or (B, KV, S, ceil(D / 2)) bytes of int4.
        scales: of each layer (B, KV, S) fp32 in int8, (B, KV, S, ceil(D / 32)) fp16 in int4, else nothing.
        lows: of each layer, in int4, the number of code 0, as ``scales``; else nothing.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int, int]], kind: KVKind, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.kind, self.dtype, self.width = kind, dtype, shapes[0][3]
        stored = {"model": dtype, "int8": torch.int8, "int4": torch.uint8}[kind]
        held = [(*s[:3], ceil(s[3] / 2)) if kind == "int4" else s for s in shapes]
        self.data = [torch.zeros(s, dtype=stored, device=device) for s in held]
        self.scales: list[Tensor] = []
        self.lows: list[Tensor] = []
        if kind == "int8":
            self.scales = [torch.zeros(s[:3], device=device) for s in shapes]
        elif kind == "int4":
            small = [(*s[:3], ceil(s[3] / _GROUP)) for s in shapes]
            self.scales = [torch.zeros(s, dtype=torch.float16, device=device) for s in small]
            self.lows = [torch.zeros(s, dtype=torch.float16, device=device) for s in small]

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(x.numel() * x.element_size() for x in (*self.data, *self.scales, *self.lows))

    def write(self, layer: int, x: Tensor, slots: Tensor | None) -> None:
        """Keep ``x`` (B, KV, T, D) at ``slots`` (B, T); None: at the first T."""
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        for into, part in zip(self._of(layer), self._encoded(x), strict=True):
            if slots is None:
                into[:, :, : x.shape[2]] = part
            else:
                into[rows, :, slots] = part.transpose(1, 2).to(into.dtype)

    def read(self, layer: int, live: int) -> Tensor:
        """Return (B, KV, live, D) of the first slots, in the model's dtype."""
        return self._decoded([x[:, :, :live] for x in self._of(layer)])

    def read_slots(self, layer: int, slots: Tensor) -> Tensor:
        """Return (B, KV, n, D) at ``slots`` (B, n), in the model's dtype."""
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        return self._decoded([x[rows, :, slots].transpose(1, 2) for x in self._of(layer)])

    def select(self, rows: Tensor) -> None:
        """Reorder or repeat rows in place."""
        self.data, self.scales, self.lows = ([x[rows] for x in xs] for xs in (self.data, self.scales, self.lows))

    def view(self, rows: slice) -> Store:
        """Return these rows, in the same memory."""
        part = copy.copy(self)
        part.data, part.scales, part.lows = ([x[rows] for x in xs] for xs in (self.data, self.scales, self.lows))
        return part

    def move(self, row: int, to: int) -> None:
        """Copy a row over another."""
        for x in (*self.data, *self.scales, *self.lows):
            x[to] = x[row]

    def _of(self, layer: int) -> list[Tensor]:
        return [xs[layer] for xs in (self.data, self.scales, self.lows) if xs]

    def _encoded(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if self.kind == "model" else _to_int8(x) if self.kind == "int8" else _to_int4(x)

    def _decoded(self, parts: Sequence[Tensor]) -> Tensor:
        if self.kind == "model":
            return parts[0]
        if self.kind == "int8":
            return (parts[0] * parts[1][..., None]).to(self.dtype)
        data, scales, lows = parts
        codes = unpack_int4(data.flatten(0, -2), self.width).float()
        step, low = (s.float().flatten(0, -2).repeat_interleave(_GROUP, 1)[:, : self.width] for s in (scales, lows))
        return (codes * step + low).view(*data.shape[:-1], self.width).to(self.dtype)


def _to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (..., D) to int8 with one fp32 scale (...) each: the largest becomes 127."""
    wide = x.float()
    scale = wide.abs().amax(dim=-1) / 127
    return (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round(), scale


def _to_int4(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round rows (..., D) to 16 even steps a 32 columns: bytes (..., ceil(D / 2)), fp16 steps and least numbers."""
    flat = x.float().reshape(-1, x.shape[-1])
    missing = -flat.shape[1] % _GROUP
    groups = torch.cat((flat, flat[:, -1:].expand(-1, missing)), dim=1).view(flat.shape[0], -1, _GROUP)
    low = groups.amin(-1).half()
    step = ((groups.amax(-1) - low.float()) / 15).half()
    least = torch.finfo(torch.float16).tiny
    codes = ((groups - low[..., None].float()) / step.clamp(min=least)[..., None].float()).round().clamp(0, 15)
    packed = pack_int4(codes.flatten(1)[:, : flat.shape[1]])
    return tuple(y.view(*x.shape[:-1], -1) for y in (packed, step, low))  # type: ignore[return-value]
