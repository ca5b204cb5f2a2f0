"""Matrix products with quantized weights: in integers, by packed kernels, by one dequantization, by a plain reference.

Which one runs depends on the machine and the number of rows of the input (tokens of a call), as measured at GPT-2
small's shapes (``docs/quantized-layout.md``). Where there is a C compiler the compiled product of eight-bit integers
(``native/many.c``) serves any number of rows, from the neutral codes. Elsewhere torch's packed kernels win up to
``FEW_ROWS`` and lose beyond; there, and on processors with matrix units (AMX), the weight is written out in the dtype
of the fastest product, a block of rows at a time into memory that is kept, and multiplied.

Backends pack once, at first use, from the neutral layout (``kernels/packed_layout.py``). torch's int8 kernel runs from
the neutral codes as they are; its int4 kernel keeps a second, reordered copy of them (half a byte a weight).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.kernels import native
from limbeck.kernels.packed_layout import Codes, unpack_int4
from limbeck.kernels.scratch import kept

__all__ = ["FEW_ROWS", "Dispatch", "Prepared", "choose", "current", "dispatch", "linear"]

Dispatch = Literal["auto", "integer", "packed", "dequantize", "reference"]

FEW_ROWS = {"int8": 8, "int4": 48}
"""Most rows for which the packed kernel is chosen where there is no product of integers, by kind of codes."""

_ROWS_BEFORE_MATRIX_UNITS = 48  # most rows for which integers are chosen where bf16 products have units of their own
_COMPILED_ROWS = 1024  # rows of one call: its scratch grows with them

_BLOCK_ELEMENTS = 8 << 20  # of the dequantized weight at a time: a layer of GPT-2 is one block, its head five
_INT4_GROUPS = (32, 64, 128)
_CUDA_TILES = 8  # inner k tiles of torch's CUDA int4 layout: columns in multiples of 16 x 8

_pinned: ContextVar[Dispatch] = ContextVar("limbeck_dispatch", default="auto")
_said: set[str] = set()


@contextmanager
def dispatch(path: Dispatch) -> Iterator[None]:
    """Pin how packed weights are executed inside a ``with`` block, in this thread (and task) alone.

    Args:
        path: "reference" multiplies by the decoded weight in the input's own dtype: the same result whatever the number
            of rows (I13, I26); "dequantize" decodes to bf16; "packed" uses torch's packed kernel and "integer" the
            product of eight-bit integers, to which it rounds the input in blocks of 32 columns whose step is a power of
            two, both for any number of rows; "auto" chooses by machine and number of rows.

    Raises:
        ValueError: no such path.
    """
    if path not in get_args(Dispatch):
        raise ValueError(f"no dispatch {path!r}: choose one of {', '.join(get_args(Dispatch))}")
    token = _pinned.set(path)
    try:
        yield
    finally:
        _pinned.reset(token)


def current() -> Dispatch:
    """Return the path pinned here, "auto" where none is."""
    return _pinned.get()


class Prepared:
    """One matrix with what the backends made of it, made at first use."""

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self._int8: Tensor | None = None
        self._int4: tuple[Tensor, Tensor, int] | None = None
        self._matrix: native.Matrix | None = None

    def supports_integer(self) -> bool:
        """Return whether there is a product of integers for this layout on this machine."""
        layout = self.codes.layout
        if layout.kind not in ("int8", "int4") or self.codes.codes.device.type != "cpu":
            return False
        library = native.load()
        return library is not None and library.limbeck_many_room(self.matrix(), 1, 1) > 0

    def supports_widened(self) -> bool:
        """Return whether a compiled product of fp32 widens this layout in cache."""
        layout = self.codes.layout
        if layout.kind not in native.KINDS or self.codes.codes.device.type != "cpu":
            return False
        library = native.load()
        return library is not None and library.limbeck_widened_room(self.matrix(), 1, 1) > 0

    def matrix(self) -> native.Matrix:
        """Return how the compiled kernels see it."""
        if self._matrix is None:
            self._matrix = native.matrix(self.codes)
        return self._matrix

    def supports_packed(self) -> bool:
        """Return whether there is a packed kernel for this layout on this machine."""
        layout, device = self.codes.layout, self.codes.codes.device
        if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
            return False
        if device.type not in ("cpu", "cuda"):
            return False
        whole_rows = layout.span == 0 or layout.span >= layout.columns
        if layout.kind == "int8":
            return whole_rows
        return layout.kind == "int4" and (whole_rows or layout.span in _INT4_GROUPS)

    def int8(self) -> Tensor:
        """Return (R, C') int8 codes for torch's kernel, padded: it reads 16 columns at a time, past the end."""
        missing = -self.codes.layout.columns % 16
        if not missing:
            return self.codes.codes
        if self._int8 is None:
            with torch.inference_mode(False), torch.no_grad():
                self._int8 = F.pad(self.codes.codes, (0, missing))
        return self._int8

    def int4(self) -> tuple[Tensor, Tensor, int]:
        """Return packed codes, (K / group, N, 2) bf16 scales and zeros, and group, padded as torch's kernels want."""
        if self._int4 is None:
            with torch.inference_mode(False), torch.no_grad():
                self._int4 = _pack_int4(self.codes)
        return self._int4


def _pack_int4(codes: Codes) -> tuple[Tensor, Tensor, int]:
    """Pad rows to 16 and columns to the group, and reorder; the kernels read ``(nibble - 8) * scale + zero``."""
    layout = codes.layout
    assert codes.scales is not None
    cuda = codes.codes.device.type == "cuda"
    whole_rows = layout.span == 0 or layout.span >= layout.columns
    group = 128 if whole_rows else layout.span
    rows = -(-layout.rows // 16) * 16
    step = max(group, 16 * _CUDA_TILES) if cuda else group
    columns = -(-layout.columns // step) * step
    pad = (0, columns - layout.columns, 0, rows - layout.rows)
    nibbles = F.pad(unpack_int4(codes.codes, layout.columns), pad, value=8).int()
    if cuda:
        packed = torch.ops.aten._convert_weight_to_int4pack(
            (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).to(torch.uint8), _CUDA_TILES
        )
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    scales, centred = codes.scales.float(), _centred(codes)
    zeros = torch.zeros_like(scales) if centred is None else centred
    both = torch.stack((scales, zeros), dim=-1)
    if whole_rows:
        both = both.expand(layout.rows, columns // group, 2)
    both = F.pad(both, (0, 0, 0, columns // group - both.shape[1], 0, rows - layout.rows))
    return packed, both.transpose(0, 1).contiguous().bfloat16(), group


def choose(prepared: Prepared, rows: int, dtype: torch.dtype) -> Dispatch:
    """Return which path ``linear`` takes for an input of ``rows`` rows in ``dtype`` that needs no gradient.

    fp64 inputs and plain fp32/fp64 weights always take the reference: nothing faster is as exact.
    """
    kind, pinned = prepared.codes.layout.kind, current()
    if pinned == "reference" or dtype == torch.float64 or kind in ("fp32", "fp64"):
        return "reference"
    if pinned == "dequantize":
        return "dequantize"
    if pinned in ("auto", "integer") and prepared.supports_integer():
        if pinned == "integer" or rows <= _ROWS_BEFORE_MATRIX_UNITS or not torch.cpu._is_amx_tile_supported():
            return "integer"
    elif pinned == "integer":
        _say_once(f"no product of integers for {kind} weights of this layout here: they are dequantized instead")
        return "dequantize"
    few = rows <= FEW_ROWS.get(kind, 0)
    if few or pinned == "packed":
        if prepared.supports_packed():
            return "packed"
        if pinned == "packed":
            _say_once(f"no packed kernel for {kind} weights of this layout here: they are dequantized instead")
    return "dequantize"


def linear(x: Tensor, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ W.T + bias`` with a quantized W, differentiable in ``x`` and ``bias``.

    Args:
        x: (..., C).
        prepared: W (R, C).
        bias: (R,), or None.

    Returns:
        (..., R) in ``x``'s dtype, or autocast's. Where a gradient is needed the arithmetic is the reference's, unless
        a path is pinned; its backward decodes W again and keeps nothing.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        path: Dispatch = "reference" if current() == "auto" else choose(prepared, flat.shape[0], x.dtype)
        y = _Product.apply(flat, prepared, path)  # type: ignore[no-untyped-call]
        if bias is not None:
            y = y + bias.to(y.dtype)
    else:
        y = _product(flat, prepared, choose(prepared, flat.shape[0], x.dtype), bias)
    return y.view(*x.shape[:-1], prepared.codes.layout.rows)


class _Product(torch.autograd.Function):
    """``x @ W.T`` that keeps no decoded weight between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, prepared: Prepared, path: Dispatch) -> Tensor:
        ctx.prepared = prepared
        return _product(x, prepared, path)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (y,) = gradients
        return y @ ctx.prepared.codes.decode(y.dtype), None, None


def _product(x: Tensor, prepared: Prepared, path: Dispatch, bias: Tensor | None = None) -> Tensor:
    """(M, C) -> (M, R) in ``x``'s dtype."""
    if path == "integer":
        return _compiled(x, prepared, bias, "many")
    y: Tensor | None = None
    if path == "packed":
        try:
            y = _packed(x, prepared)
        except RuntimeError as error:  # a kernel that this build or device lacks
            _say_once(f"torch's packed {prepared.codes.layout.kind} kernel failed here ({error}): dequantizing instead")
            path = "dequantize"
    if path == "dequantize" and _fast_dtype(x) == torch.float32 and prepared.supports_widened():
        return _compiled(x, prepared, bias, "widened")
    if y is None:
        y = _dequantized(x, prepared.codes) if path == "dequantize" else F.linear(x, prepared.codes.decode(x.dtype))
    return y if bias is None else y + bias.to(y.dtype)


def _compiled(x: Tensor, prepared: Prepared, bias: Tensor | None, product: Literal["many", "widened"]) -> Tensor:
    """Return a compiled product; inputs that are neither fp32 nor bf16 pass through fp32."""
    library = native.load()
    assert library is not None
    room_of, multiply = getattr(library, f"limbeck_{product}_room"), getattr(library, f"limbeck_{product}")
    plain = x.detach().contiguous() if x.dtype in (torch.float32, torch.bfloat16) else x.detach().float()
    shift = None if bias is None else bias.detach().float()
    y = torch.empty(x.shape[0], prepared.codes.layout.rows, dtype=plain.dtype)
    matrix, threads, kind = prepared.matrix(), torch.get_num_threads(), int(plain.dtype == torch.bfloat16)
    for start in range(0, x.shape[0], _COMPILED_ROWS):
        part, into = plain[start : start + _COMPILED_ROWS], y[start : start + _COMPILED_ROWS]
        room = kept(room_of(matrix, part.shape[0], threads), torch.uint8, x.device)
        multiply(
            matrix, None if shift is None else shift.data_ptr(), part.shape[0], kind, part.data_ptr(), into.data_ptr(),
            room.data_ptr(), threads,
        )  # fmt: skip
    return y.to(x.dtype)


def _packed(x: Tensor, prepared: Prepared) -> Tensor:
    codes, layout = prepared.codes, prepared.codes.layout
    half = x.bfloat16().contiguous()
    if layout.kind == "int8":
        assert codes.scales is not None
        # scales are applied in x's own dtype afterwards: in the kernel they would be rounded to bf16
        ones = torch.ones(layout.rows, dtype=torch.bfloat16, device=x.device)
        weight = prepared.int8()
        y = torch._weight_int8pack_mm(F.pad(half, (0, weight.shape[1] - layout.columns)), weight, ones)
        return _scaled(y.to(x.dtype), half, codes)
    packed, scales, group = prepared.int4()
    half = F.pad(half, (0, scales.shape[0] * group - layout.columns))
    kernel = torch.ops.aten._weight_int4pack_mm if x.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
    y = kernel(half, packed, group, scales)
    out: Tensor = y[:, : layout.rows].to(x.dtype)
    return out


def _centred(codes: Codes) -> Tensor | None:
    """Zeros to add where nibbles count from -8, not from 0: ``zero + 8 * scale``, fp32."""
    if codes.zeros is None or codes.scales is None:
        return None
    return codes.zeros.float() + 8 * codes.scales.float() if codes.layout.kind == "int4" else codes.zeros.float()


def _scaled(y: Tensor, half: Tensor, codes: Codes) -> Tensor:
    """Apply one scale (and zero) a row of W to ``y = half @ codes.T``."""
    assert codes.scales is not None
    y, zeros = y * codes.scales.to(y.dtype).view(1, -1), _centred(codes)
    if zeros is not None:
        y = y + half.to(y.dtype).sum(dim=1, keepdim=True) * zeros.to(y.dtype).view(1, -1)
    return y


def _dequantized(x: Tensor, codes: Codes) -> Tensor:
    """Write W out block by block in the dtype of the fastest product here, and multiply."""
    layout, fast = codes.layout, _fast_dtype(x)
    half = x.to(fast)
    whole_rows = codes.scales is not None and (layout.span == 0 or layout.span >= layout.columns)
    block = max(16, _BLOCK_ELEMENTS // layout.columns)
    out = torch.empty(x.shape[0], layout.rows, dtype=x.dtype, device=x.device)
    for start in range(0, layout.rows, block):
        part = codes.take(slice(start, start + block))
        weight = kept(part.layout.rows * layout.columns, fast, x.device).view(-1, layout.columns)
        _write(part, weight, scale=not whole_rows)
        y = (half @ weight.t()).to(x.dtype)
        out[:, start : start + block] = _scaled(y, half, part) if whole_rows else y
    return out


def _write(codes: Codes, out: Tensor, scale: bool) -> None:
    """Decode into ``out`` (R, C) in its own dtype: integers are exact in bf16, scales and products are rounded.

    Nibbles with an offset are centred, ``(nibble - 8) * scale + (zero + 8 * scale)``: smaller products, smaller errors.
    """
    span, columns = codes.layout.span, codes.layout.columns
    if codes.layout.kind == "int4" and columns % 2 == 0:
        pairs = codes.codes.to(torch.int16)
        pairs = (pairs | (pairs << 4)) & 0x0F0F  # little-endian: the low nibble becomes the first of two bytes
        integers = pairs.view(torch.int8)
        out.copy_(integers.sub_(8))
    else:
        integers = codes.integers()
        out.copy_(integers - 8 if codes.layout.kind == "int4" and codes.layout.offset else integers)
    if not scale or codes.scales is None:
        return
    zeros = _centred(codes)
    whole = columns // span * span
    for begin, end, width in ((0, whole, span), (whole, columns, columns - whole)):
        if begin == end:
            continue
        groups = slice(begin // span, begin // span + (end - begin) // width)
        view = out[:, begin:end].view(out.shape[0], -1, width)
        view.mul_(codes.scales[:, groups, None].to(out.dtype))
        if zeros is not None:
            view.add_(zeros[:, groups, None].to(out.dtype))


def _fast_dtype(x: Tensor) -> torch.dtype:
    """Return bf16 where the machine multiplies it in hardware, else fp32 (or the input's own dtype, if wider)."""
    if x.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=3)
