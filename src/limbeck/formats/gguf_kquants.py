"""K-quants of GGUF files: Q4_K, Q5_K and Q6_K, in super-blocks of 256 columns, written here and read by others.

The layouts are ggml's (``ggml-common.h``: ``block_q4_K``, ``block_q5_K``, ``block_q6_K``); the gguf package reads them
and does not write them. Steps and offsets are searched by least squared error, weighted by the squares of the weights
in Q6_K, as ggml's ``make_qx_quants`` and ``make_qkx2_quants`` do; this search tries fewer candidates and is not
bit-equal to theirs.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FALLBACKS", "SUPER", "fallback", "quantize"]

_Kind = gguf.GGMLQuantizationType
SUPER = 256
"""Columns of a super-block."""

FALLBACKS = {_Kind.Q4_K: _Kind.Q5_0, _Kind.Q5_K: _Kind.Q5_1, _Kind.Q6_K: _Kind.Q8_0}
"""Type that llama.cpp takes for a matrix whose columns 256 does not divide."""


def fallback(kind: gguf.GGMLQuantizationType, columns: int) -> gguf.GGMLQuantizationType:
    """Return the type that a matrix of so many columns takes where ``kind`` is wanted; F16 where 32 does not divide."""
    if kind in FALLBACKS and columns % SUPER:
        kind = FALLBACKS[kind]
    plain = kind in (_Kind.F32, _Kind.F16, _Kind.BF16)
    return _Kind.F16 if columns % 32 and not plain else kind


def quantize(weight: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """Return ``weight`` (R, C), C a multiple of 256, as blocks of Q4_K, Q5_K or Q6_K: (R, bytes)."""
    blocks = torch.from_numpy(weight).reshape(-1, SUPER)
    made = _q6(blocks) if kind == _Kind.Q6_K else _with_offsets(blocks, 4 if kind == _Kind.Q4_K else 5)
    return made.reshape(weight.shape[0], -1)


def _half(x: Tensor) -> NDArray[np.uint8]:
    """Return (N,) as fp16 bytes (N, 2)."""
    return x.half().numpy().view(np.uint8).reshape(-1, 2)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), 1 / torch.where(x == 0, torch.ones_like(x), x))


def _q6(blocks: Tensor) -> NDArray[np.uint8]:
    """Codes -32..31 times an int8 scale of each 16 columns times one fp16 a super-block."""
    parts = blocks.view(len(blocks), 16, 16)
    weights = parts.square()
    extreme = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))[..., 0]
    best, most = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    for shift in range(-9, 10):  # steps around the largest weight / -32, each with its best factor
        codes = (parts * _inverse(extreme / -(32 + 0.1 * shift))[..., None]).round().clamp(-32, 31)
        up, down = (weights * parts * codes).sum(-1), (weights * codes.square()).sum(-1)
        explained = up.square() * _inverse(down)
        better = explained > most
        best, most = torch.where(better, up * _inverse(down), best), torch.where(better, explained, most)
    largest = best.gather(1, best.abs().argmax(1, keepdim=True))
    whole = (largest / -128).half().float()
    scales = (best * _inverse(whole)).round().clamp(-128, 127)
    codes = ((parts * _inverse(whole * scales)[..., None]).round().clamp(-32, 31) + 32).to(torch.uint8)
    halves = codes.view(-1, 2, 4, 32)  # of each 128 columns four runs of 32, which share bytes
    low, high = halves & 15, halves >> 4
    ql = torch.cat((low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4), dim=-1)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    small = scales.to(torch.int8).numpy().view(np.uint8)
    return np.concatenate((ql.flatten(1).numpy(), qh.flatten(1).numpy(), small, _half(whole[:, 0])), axis=1)


def _with_offsets(blocks: Tensor, bits: int) -> NDArray[np.uint8]:
    """Codes from 0 times a step, less an offset, of each 32 columns: both six bits times one fp16 a super-block."""
    top = 2**bits - 1
    parts = blocks.view(len(blocks), 8, 32)
    step, offset = _ranges(parts, top)
    d, dmin = ((x.amax(1, keepdim=True) / 63).half().float() for x in (step, offset))
    steps, offsets = ((x * _inverse(y)).round().clamp(0, 63) for x, y in ((step, d), (offset, dmin)))
    codes = ((parts + (dmin * offsets)[..., None]) * _inverse(d * steps)[..., None]).round().clamp(0, top)
    codes = codes.to(torch.uint8).view(-1, 4, 2, 32)
    qs = (codes[:, :, 0] & 15) | (codes[:, :, 1] & 15) << 4
    out = [_half(d[:, 0]), _half(dmin[:, 0]), _six_bits(steps.to(torch.uint8), offsets.to(torch.uint8))]
    if bits == 5:
        fifth = (codes >> 4).view(-1, 8, 32)
        places = torch.arange(8, dtype=torch.uint8)[:, None]
        out.append((fifth << places).sum(dim=1).to(torch.uint8).numpy())
    return np.concatenate((*out, qs.flatten(1).numpy()), axis=1)


def _ranges(parts: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return step and offset (N, 8), both 0 or more, of least squared error among shrunken and widened ranges."""
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1)
    step, offset = (high - low).clamp(min=0) / top, -low
    least = torch.full_like(step, torch.inf)
    best = step, offset
    for shift in range(-10, 11):
        tried = (high - low).clamp(min=0) / (top + 0.1 * shift)
        codes = ((parts - low[..., None]) * _inverse(tried)[..., None]).round().clamp(0, top)
        # the line through (code, weight) of least squares; an offset below 0 is not to be had
        n, sx, sy = parts.shape[-1], codes.sum(-1), parts.sum(-1)
        sxx, sxy = codes.square().sum(-1), (codes * parts).sum(-1)
        slope = (n * sxy - sx * sy) * _inverse(n * sxx - sx.square())
        base = (sy - slope * sx) / n
        flat = base > 0
        slope, base = torch.where(flat, sxy * _inverse(sxx), slope), torch.where(flat, torch.zeros_like(base), base)
        error = (codes * slope[..., None] + base[..., None] - parts).square().sum(-1)
        better = (error < least) & (slope >= 0)
        least = torch.where(better, error, least)
        best = torch.where(better, slope, best[0]), torch.where(better, -base, best[1])
    return best


def _six_bits(steps: Tensor, offsets: Tensor) -> NDArray[np.uint8]:
    """Return two times eight numbers below 64 in twelve bytes, as ggml's ``get_scale_min_k4`` takes them apart."""
    first = steps[:, :4] | (steps[:, 4:] >> 4) << 6
    second = offsets[:, :4] | (offsets[:, 4:] >> 4) << 6
    third = (steps[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4
    return torch.cat((first, second, third), dim=1).numpy()
