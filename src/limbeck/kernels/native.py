"""The C kernels of this package (``native/``): their structures and functions, as ctypes sees them.

``build`` finds or compiles the library. Where there is none, or where ``LIMBECK_NATIVE=off``, ``load`` returns None and
says why once; callers then take their torch path. ``LIMBECK_ARCH`` chooses the instructions, as the compiler's
``-march`` does: "native", "x86-64-v3" (AVX2), "x86-64-v4", ...; by default a wheel's best library, else native.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from limbeck.kernels import build
from limbeck.kernels.packed_layout import Codes

__all__ = [
    "KINDS", "CompiledKernels", "Document", "HeadGradients", "Heads", "Layer", "Matrix", "Model", "find", "load",
    "matrix",
]  # fmt: skip

KINDS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3, "int4": 4, "fp8_e4m3": 5, "fp8_e5m2": 6}
"""Numbers by which the C source knows the kinds of codes (``packed_layout``)."""

_i64, _pointer = ctypes.c_int64, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """``matrix`` of ``matrix.h``: a weight (rows, columns) in the neutral layout."""

    _fields_ = (
        *((name, _i64) for name in ("kind", "rows", "columns", "span", "half_scales")),
        *((name, _pointer) for name in ("codes", "scales", "zeros", "bias")),
    )


class Layer(ctypes.Structure):
    """``layer`` of ``step.c``."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, _pointer) for name in ("attention_gain", "attention_shift", "ffn_gain", "ffn_shift")),
        *((name, _pointer) for name in ("keys", "values", "key_scales", "value_scales")),
        ("slots", _i64),
        *((name, _pointer) for name in ("write", "count", "seen")),
        *((name, _i64) for name in ("most", "sinks")),
        *((name, _pointer) for name in ("sink_cosines", "sink_sines")),
    )


class Model(ctypes.Structure):
    """``model`` of ``step.c``."""

    _fields_ = (
        *((name, _i64) for name in ("layers", "width", "heads", "kv_heads", "head_width", "ffn")),
        *((name, _i64) for name in ("gated", "activation", "rms", "cache_kind", "rotary")),
        ("eps", ctypes.c_double),
        ("layer", ctypes.POINTER(Layer)),
        *((name, _pointer) for name in ("gain", "shift")),
        *((name, Matrix) for name in ("head", "embed", "positions")),
    )


def matrix(codes: Codes) -> Matrix:
    """Describe a quantized matrix; the description points into its tensors, which must be kept alive."""
    layout, scales, zeros = codes.layout, codes.scales, codes.zeros
    return Matrix(
        kind=KINDS[layout.kind], rows=layout.rows, columns=layout.columns, span=-1 if scales is None else layout.span,
        half_scales=layout.scale_dtype == torch.float16, codes=codes.codes.data_ptr(),
        scales=None if scales is None else scales.data_ptr(), zeros=None if zeros is None else zeros.data_ptr(),
    )  # fmt: skip


class Heads(ctypes.Structure):
    """``problem`` of ``attend.c``: queries, keys and values by their strides."""

    _fields_ = (
        *((name, _i64) for name in ("half", "heads", "kv_heads", "length", "width")),
        *((f"{name}_{axis}", _i64) for name in "qkv" for axis in ("row", "head", "token")),
        *((name, _pointer) for name in ("q", "k", "v", "out", "sums")),
        ("scale", ctypes.c_double),
    )


class HeadGradients(ctypes.Structure):
    """``gradients`` of ``attend.c``: that of the result by its strides, and those to fill."""

    _fields_ = (
        *((name, _i64) for name in ("row", "head", "token")),
        *((name, _pointer) for name in ("grad", "dq", "dk", "dv")),
    )


class Document(ctypes.Structure):
    """``document`` of ``attend.c``: tokens of one row, and where their keys and values are laid out."""

    _fields_ = tuple((name, _i64) for name in ("row", "start", "stop", "tile"))


@dataclass(frozen=True, slots=True)
class CompiledKernels:
    """The compiled kernels here, or why there are none.

    Attributes:
        functions: the loaded library; None: torch's operations serve.
        file: what was loaded.
        instructions: for which it was compiled, such as "AVX2".
        reason: why there is no library; "" where ``LIMBECK_NATIVE=off`` asked for none.
    """

    functions: ctypes.CDLL | None = None
    file: Path | None = None
    instructions: str = ""
    reason: str = ""


@cache
def load() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None (after one warning, unless they were switched off) where they cannot be had.

    Raises:
        ValueError: LIMBECK_NATIVE is neither "on" nor "off", or the processor lacks what LIMBECK_ARCH names.
    """
    found = find()
    if found.reason:
        warnings.warn(
            f"the compiled kernels are not to be had here ({found.reason}): torch's operations serve, which are "
            "slower; install a C compiler, or set LIMBECK_NATIVE=off to hear no more of it",
            stacklevel=2,
        )
    return found.functions


def find() -> CompiledKernels:
    """Find the library in the package or the cache, or compile it.

    Raises:
        ValueError: as of ``load``.
    """
    wanted, arch = os.environ.get("LIMBECK_NATIVE", "on"), os.environ.get("LIMBECK_ARCH", "")
    if wanted not in ("on", "off"):
        raise ValueError(f"LIMBECK_NATIVE is '{wanted}': it must be 'on' or 'off'")
    if wanted == "off":
        return CompiledKernels()
    lacking = build.lacking(arch)
    if lacking:
        raise ValueError(f"LIMBECK_ARCH is '{arch}', but this processor lacks {', '.join(lacking)}")
    try:
        file = build.packaged(arch) or build.built(build.compiler())
        library = _open(file)
    except subprocess.CalledProcessError as error:
        return CompiledKernels(reason=" ".join(error.stderr.strip().splitlines()[:1]) or str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return CompiledKernels(reason=str(error))
    return CompiledKernels(library, file, library.limbeck_instructions().decode())


def _open(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    lib.limbeck_instructions.argtypes = ()
    lib.limbeck_instructions.restype = ctypes.c_char_p
    model = ctypes.POINTER(Model)
    lib.limbeck_scratch.argtypes = (model, _i64, _i64, _i64)
    lib.limbeck_scratch.restype = _i64
    lib.limbeck_step.argtypes = (model, _i64, _i64, *[_pointer] * 7, _i64, _i64)
    lib.limbeck_step.restype = None
    lib.limbeck_choose.argtypes = (
        _pointer, _i64, _i64, _pointer, _pointer, *[ctypes.c_double] * 2, _i64, *[ctypes.c_double] * 2, *[_pointer] * 4,
    )  # fmt: skip
    lib.limbeck_choose.restype = None
    weight = ctypes.POINTER(Matrix)
    lib.limbeck_many_room.argtypes = (weight, _i64, _i64)
    lib.limbeck_many_room.restype = _i64
    lib.limbeck_many.argtypes = (weight, _pointer, _i64, _i64, *[_pointer] * 3, _i64)
    lib.limbeck_many.restype = None
    lib.limbeck_widened_room.argtypes = (weight, _i64, _i64)
    lib.limbeck_widened_room.restype = _i64
    lib.limbeck_widened.argtypes = (weight, _pointer, _i64, _i64, *[_pointer] * 3, _i64)
    lib.limbeck_widened.restype = None
    lib.limbeck_activate.argtypes = (*[_i64] * 5, *[_pointer] * 2, _i64)
    lib.limbeck_activate.restype = _i64
    lib.limbeck_activate_backward.argtypes = (*[_i64] * 5, *[_pointer] * 3, _i64)
    lib.limbeck_activate_backward.restype = _i64
    lib.limbeck_likelihood.argtypes = (*[_i64] * 4, *[_pointer] * 5, _i64)
    lib.limbeck_likelihood.restype = _i64
    heads = ctypes.POINTER(Heads)
    lib.limbeck_attend_room.argtypes = (heads, _i64, _i64)
    lib.limbeck_attend_room.restype = _i64
    lib.limbeck_attend.argtypes = (heads, _i64, ctypes.POINTER(Document), _pointer, _i64)
    lib.limbeck_attend.restype = None
    lib.limbeck_attend_backward_room.argtypes = (heads, _i64, _i64)
    lib.limbeck_attend_backward_room.restype = _i64
    lib.limbeck_attend_backward.argtypes = (
        heads, ctypes.POINTER(HeadGradients), _i64, ctypes.POINTER(Document), _i64, _pointer, _i64,
    )  # fmt: skip
    lib.limbeck_attend_backward.restype = None
    return lib
