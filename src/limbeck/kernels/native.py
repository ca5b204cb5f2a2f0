"""C kernels of this package, compiled where they run, for the processor at hand.

The source is ``native/``. It is compiled at first use with the system's C compiler (``CC``, else cc, gcc or clang) and
kept in ``$LIMBECK_CACHE`` (``~/.cache/limbeck``) under a name made of the source, the flags and the processor, so that
another machine that shares the folder makes its own. Where there is no compiler, or where ``LIMBECK_NATIVE=off``,
``load`` returns None and says why once; callers then take their torch path. ``LIMBECK_ARCH`` chooses the instructions,
as the compiler's ``-march`` does: "native" (default), "x86-64-v3" (AVX2), "x86-64-v4", ...
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from limbeck.kernels.packed_layout import Codes

__all__ = ["KINDS", "Document", "HeadGradients", "Heads", "Layer", "Matrix", "Model", "load", "matrix"]

KINDS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3, "int4": 4, "fp8_e4m3": 5, "fp8_e5m2": 6}
"""Numbers by which the C source knows the kinds of codes (``packed_layout``)."""

_SOURCE = Path(__file__).with_name("native")
_FLAGS = ("-O3", "-fopenmp", "-fPIC", "-std=gnu11", "-Wno-psabi")
_NEEDS = {"x86-64-v3": {"avx2", "fma", "f16c"}, "x86-64-v4": {"avx512f", "avx512bw", "avx512vl"}}
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


@cache
def load() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None (after one warning, unless they were switched off) where they cannot be had.

    Raises:
        ValueError: LIMBECK_NATIVE is neither "on" nor "off", or the processor lacks what LIMBECK_ARCH names.
    """
    wanted, arch = os.environ.get("LIMBECK_NATIVE", "on"), os.environ.get("LIMBECK_ARCH", "")
    if wanted not in ("on", "off"):
        raise ValueError(f"LIMBECK_NATIVE is '{wanted}': it must be 'on' or 'off'")
    if wanted == "off":
        return None
    if arch in _NEEDS and not _NEEDS[arch] <= set(_processor().split()):
        raise ValueError(f"LIMBECK_ARCH is '{arch}', but this processor lacks {', '.join(sorted(_NEEDS[arch]))}")
    try:
        return _open(_built(_compiler()))
    except (OSError, subprocess.SubprocessError) as error:
        told = (
            error.stderr.strip().splitlines()[:1] if isinstance(error, subprocess.CalledProcessError) else [str(error)]
        )
        warnings.warn(
            f"the compiled kernels are not to be had here ({' '.join(told)}): torch's operations serve, which are "
            "slower; install a C compiler, or set LIMBECK_NATIVE=off to hear no more of it",
            stacklevel=2,
        )
        return None


def _compiler() -> list[str]:
    given = os.environ.get("CC")
    if given:
        return shlex.split(given)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C compiler was found")


def _processor() -> str:
    """Return what ``-march=native`` depends on, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join((platform.machine(), platform.processor(), *sorted(told)))


def _built(compiler: list[str]) -> Path:
    """Compile, unless that was done before; the finished file appears whole under its name."""
    sources = sorted(_SOURCE.glob("*.[ch]"))
    flags = (*_FLAGS, f"-march={os.environ.get('LIMBECK_ARCH') or 'native'}")
    key = hashlib.sha256()
    for part in (*(s.read_bytes() for s in sources), " ".join((*compiler, *flags)).encode(), _processor().encode()):
        key.update(hashlib.sha256(part).digest())
    folder = Path(os.environ.get("LIMBECK_CACHE", "~/.cache/limbeck")).expanduser() / "native"
    target = folder / f"{key.hexdigest()[:24]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print("compiling the C kernels for this processor, once: up to a minute ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        units = [s for s in sources if s.suffix == ".c"]
        objects = [str(Path(place) / f"{s.stem}.o") for s in units]
        made = Path(place) / target.name
        with ThreadPoolExecutor(min(len(units), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda s, o: _call([*compiler, *flags, "-c", str(s), "-o", o]), units, objects))
        _call([*compiler, *flags, "-shared", *objects, "-o", str(made), "-lm"])
        made.replace(target)
    return target


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)


def _open(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
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
