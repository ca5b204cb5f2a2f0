"""The header of a GGUF file (versions 2 and 3), checked before anything is allocated, and its tensors by rows.

The ``gguf`` package's reader keeps several views of the file for each string, which for a vocabulary of 50,000 takes
more memory than a small model, and it trusts every count. Here the header is read once, every count is compared with
the bytes that are left, and tensors are read from the file a few rows at a time. The decoding of quantized types is
the package's.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from limbeck.errors import CheckpointError

__all__ = ["GgufFile", "GgufTensor"]

_Kind = gguf.GGMLQuantizationType
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST = 1 << 24  # bytes of a string, items of an array: above any vocabulary or chat template
_NAME = 256  # characters of a name; no model's come near
_VALUES = 1 << 16  # entries of metadata, and of tensors
_DIMENSIONS, _ELEMENTS = 4, 1 << 40
_CHUNK = 1 << 20  # numbers decoded at a time
_PLAIN = {_Kind.F64: np.float64, _Kind.I8: np.int8, _Kind.I16: np.int16, _Kind.I32: np.int32, _Kind.I64: np.int64}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What a file says of one tensor.

    Attributes:
        name: its name.
        shape: its shape in torch's order: the dimension that is contiguous comes last.
        kind: its type.
        offset: first byte in the file.
        bytes: how many there are.
    """

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        """Number of rows; a vector has one."""
        return prod(self.shape[:-1])


class GgufFile:
    """Metadata and tensors of one file.

    Attributes:
        path: the file.
        values: every entry of the metadata; arrays of numbers are numpy arrays, arrays of strings are lists.
        tensors: name -> where it lies.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            CheckpointError: the file is truncated, or holds counts, types or offsets that cannot be.
        """
        self.path = path
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with path.open("rb") as stream:
                self._read(_Header(stream, path))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None

    def _read(self, h: _Header) -> None:
        if h.take(4) != _MAGIC:
            raise h.wrong("does not begin with GGUF: it is no GGUF file")
        version = h.number("I")
        if version not in _VERSIONS:
            order = " (a file of big-endian numbers)" if version & 0xFFFF == 0 else ""
            raise h.wrong(f"has GGUF version {version}{order}: supported are 2 and 3")
        tensors, entries = h.number("Q"), h.number("Q")
        h.check("tensors", tensors, least=24, most=_VALUES)
        h.check("metadata entries", entries, least=13, most=_VALUES)
        for _ in range(entries):
            key = h.name("a key of the metadata")
            if key in self.values:
                raise h.wrong(f"gives '{key}' twice")
            self.values[key] = h.value(key)
        found = [h.tensor() for _ in range(tensors)]
        alignment = self.values.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 8 or alignment & alignment - 1:
            raise h.wrong(f"has general.alignment = {alignment!r}, which is no power of two from 8 up")
        start = -(-h.at // alignment) * alignment
        end = start
        for name, shape, kind, offset in sorted(found, key=lambda entry: entry[3]):
            size = _size(shape, kind)
            if name in self.tensors:
                raise h.wrong(f"holds the tensor '{name}' twice")
            if offset % alignment:
                raise h.wrong(f"places '{name}' at byte {offset}, which is no multiple of {alignment}")
            if start + offset < end:
                raise h.wrong(f"places '{name}' over another tensor")
            end = start + offset + size
            if end > h.size:
                raise h.wrong(f"is truncated: '{name}' ends at byte {end:,} of {h.size:,}")
            self.tensors[name] = GgufTensor(name, shape, kind, start + offset, size)

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the first row and the bytes (R, bytes of a row) of a few rows at a time, in order.

        Raises:
            CheckpointError: the file ends before them.
        """
        tensor = self.tensors[name]
        row_bytes = tensor.bytes // max(tensor.rows, 1)
        step = max(1, _CHUNK // max(tensor.shape[-1], 1))
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset)
            for at in range(0, tensor.rows, step):
                count = min(step, tensor.rows - at)
                data = np.fromfile(stream, np.uint8, count * row_bytes)
                if data.size < count * row_bytes:
                    raise CheckpointError(f"{self.path} is truncated within '{name}'")
                yield at, data.reshape(count, row_bytes)

    def numbers(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row and the numbers (R, columns) of a few rows at a time, in fp32 (F64 stays)."""
        kind = self.tensors[name].kind
        for at, data in self.chunks(name):
            yield at, data.view(_PLAIN[kind]) if kind in _PLAIN else gguf.quants.dequantize(data, kind)


class _Header:
    """A stream with every count checked against the bytes that are left."""

    def __init__(self, stream: io.BufferedReader, path: Path) -> None:
        self.stream, self.path, self.at = stream, path, 0
        self.size = path.stat().st_size

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}")

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.wrong(f"is truncated: its header goes on after byte {self.size:,}")
        self.at += count
        data = self.stream.read(count)
        if len(data) < count:
            raise self.wrong("became shorter while it was read")
        return data

    def check(self, what: str, count: int, least: int, most: int) -> None:
        """Refuse ``count`` things of at least ``least`` bytes each that cannot be there."""
        if count > most or count * least > self.size - self.at:
            raise self.wrong(f"claims to hold {count:,} {what}, which cannot be: it is damaged")

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self, what: str) -> str:
        length = self.number("Q")
        self.check(f"bytes in {what}", length, least=1, most=_LONGEST)
        return self.take(length).decode("utf-8", errors="replace")

    def name(self, what: str) -> str:
        value = self.string(what)
        if not value.isprintable() or len(value) > _NAME:
            raise self.wrong(f"has {what} that is no name ({value[:20]!a}): it is damaged")
        return value

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string(f"'{key}'")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.wrong(f"has '{key}' of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            self.check(f"strings in '{key}'", count, least=8, most=_LONGEST)
            return [self.string(f"'{key}'") for _ in range(count)]
        if inner not in _SCALARS:
            raise self.wrong(f"has in '{key}' an array of type {inner}: arrays hold numbers or strings")
        size = struct.calcsize(_SCALARS[inner])
        self.check(f"numbers in '{key}'", count, least=size, most=_LONGEST)
        return np.frombuffer(self.take(count * size), np.dtype(f"<{_SCALARS[inner]}"))

    def tensor(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        name = self.name("a tensor's name")
        dimensions = self.number("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise self.wrong(f"gives '{name}' {dimensions} dimensions: 1 to {_DIMENSIONS} are possible")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if not all(0 < n <= _ELEMENTS for n in shape) or prod(shape) > _ELEMENTS:
            raise self.wrong(f"gives '{name}' the shape {shape}, which no tensor has")
        number, offset = self.number("I"), self.number("Q")
        kind = next((k for k in _Kind if k == number), None)
        if kind is None or not _is_known(kind):
            named = kind.name if kind is not None else f"number {number}"
            raise self.wrong(f"holds '{name}' in the type {named}, which the gguf package does not decode")
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            block = gguf.GGML_QUANT_SIZES[kind][0]
            raise self.wrong(f"holds '{name}' in {kind.name} with {shape[-1]} columns, no multiple of {block}")
        return name, shape, kind, offset


def _size(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return prod(shape) // block * size


_KNOWN: dict[gguf.GGMLQuantizationType, bool] = {}


def _is_known(kind: gguf.GGMLQuantizationType) -> bool:
    """Return whether the gguf package decodes this type."""
    if kind not in _KNOWN:
        try:
            if kind not in _PLAIN:
                gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            _KNOWN[kind] = True
        except (NotImplementedError, KeyError):
            _KNOWN[kind] = False
    return _KNOWN[kind]
