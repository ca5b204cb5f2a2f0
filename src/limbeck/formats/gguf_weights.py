"""The tensors of a GGUF file under the names, and in the order of rows, of the family's Hugging Face layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import CheckpointError
from limbeck.formats.gguf_config import ROPE_FACTORS
from limbeck.formats.gguf_file import GgufFile
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.weights import TensorHeader
from limbeck.kernels.packed_layout import Codes, pack_int4
from limbeck.model.config import DecoderConfig
from limbeck.model.positions import interleaved_rows

__all__ = ["GRIDS", "GgufWeights", "by_parameter"]

_Kind = gguf.GGMLQuantizationType
_BLOCK = 32
GRIDS = {_Kind.Q8_0: "q8_0", _Kind.Q4_0: "q4_0", _Kind.Q4_1: "q4_1"}
"""Types whose blocks are a grid of ours, and its name."""

_IGNORED = {ROPE_FACTORS}  # read with the settings


class GgufWeights:
    """As ``weights.Weights``, a few rows at a time; each tensor is decoded to fp32 on its way.

    Attributes:
        where: the file.
        headers: key of the Hugging Face layout -> shape there; a tensor that the family has no key for keeps its own.
    """

    def __init__(self, file: GgufFile, config: DecoderConfig, pieces: Iterable[TensorPiece]) -> None:
        """Name the tensors.

        Args:
            file: the file.
            config: its decoder.
            pieces: what the family's file holds.

        Raises:
            CheckpointError: the file has fewer layers than its metadata claims.
        """
        self.where = str(file.path)
        self._file, self._config = file, config
        if config.layers > len(file.tensors):
            raise CheckpointError(f"{file.path} claims {config.layers} layers, but holds {len(file.tensors)} tensors")
        self.architecture = str(file.values["general.architecture"])
        names = gguf.get_tensor_name_map(_architecture(self.architecture), config.layers)
        self._keys: dict[str, str] = {}  # of the Hugging Face layout -> of the file
        self._pieces: dict[str, TensorPiece] = {}
        for piece in pieces:
            key = names.get_name(piece.key, try_suffixes=(".weight", ".bias"))
            if key is not None and key in file.tensors:
                self._keys[piece.key], self._pieces[piece.key] = key, piece
        self.headers = {k: TensorHeader(file.path, self._shape(k), "F32") for k in self._keys}
        known = {*self._keys.values(), *_IGNORED}
        self.headers |= {
            k: TensorHeader(file.path, t.shape, t.kind.name) for k, t in file.tensors.items() if k not in known
        }

    def _shape(self, key: str) -> tuple[int, ...]:
        shape = self._file.tensors[self._keys[key]].shape
        return shape[::-1] if self._pieces[key].transposed else shape

    def parts(self, key: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield rows of a tensor and which they are; GPT-2's transposed matrices come whole."""
        name, piece = self._keys[key], self._pieces[key]
        vector = len(self._file.tensors[name].shape) == 1
        shift = 1.0 if self.architecture in _SHIFTED and key.endswith("norm.weight") else 0.0
        whole = []
        for at, rows in self._file.numbers(name):
            values = torch.from_numpy(np.ascontiguousarray(rows)) - shift if shift else torch.from_numpy(rows)
            if piece.transposed:
                whole.append(values)
            elif vector:
                order = self._order(piece, slice(0, values.shape[1]))
                yield order, values[0]
            else:
                yield self._order(piece, slice(at, at + len(values))), values
        if whole:
            yield slice(None), torch.cat(whole).T

    def _order(self, piece: TensorPiece, rows: slice) -> slice | Tensor:
        """Rows of the family's layout that these rows of the file are."""
        order = _reorder(self.architecture, self._config, piece.key)
        return rows if order is None else order[rows]

    def grid(self, pieces: Sequence[TensorPiece]) -> str | None:
        """Name the grid of ours that a parameter's tensors are all on; None where there is none."""
        kinds = {self._file.tensors[self._keys[p.key]].kind for p in pieces if p.key in self._keys}
        plain = not any(p.transposed and len(p.shape) == 1 or p.lead or p.shift for p in pieces)
        return GRIDS.get(kinds.pop()) if len(kinds) == 1 and plain else None

    @torch.no_grad()
    def codes(self, pieces: Sequence[TensorPiece], into: Codes) -> None:
        """Copy the blocks of a parameter's tensors into ``into``, bit for bit and without a float copy."""
        for piece in pieces:
            name = self._keys[piece.key]
            kind = self._file.tensors[name].kind
            for at, data in self._file.chunks(name):
                parts = _split(data, kind)
                rows = slice(at, at + len(data))
                at_file = rows if piece.transposed else self._order(piece, rows)
                for target, values in zip((into.scales, into.zeros, into.codes), parts, strict=True):
                    if values is not None:
                        assert target is not None
                        flat = TensorPiece(piece.key, piece.name, tuple(_file_shape(piece)), piece.rows)
                        flat.put(target, values, at_file)


def _file_shape(piece: TensorPiece) -> tuple[int, ...]:
    return piece.shape[::-1] if piece.transposed else piece.shape


def _split(data: NDArray[np.uint8], kind: gguf.GGMLQuantizationType) -> tuple[Tensor, Tensor | None, Tensor]:
    """Blocks (R, bytes) as scales (R, C / 32), zeros and codes of the neutral layout."""
    heads = 2 if kind == _Kind.Q4_1 else 1
    blocks = data.reshape(len(data), -1, gguf.GGML_QUANT_SIZES[kind][1])
    numbers = torch.from_numpy(np.ascontiguousarray(blocks[:, :, : 2 * heads])).view(torch.float16)
    quants = torch.from_numpy(np.ascontiguousarray(blocks[:, :, 2 * heads :]))
    if kind == _Kind.Q8_0:
        return numbers[:, :, 0], None, quants.view(torch.int8).flatten(1)
    nibbles = torch.cat((quants & 15, quants >> 4), dim=-1).flatten(1)
    return numbers[:, :, 0], numbers[:, :, 1] if heads == 2 else None, pack_int4(nibbles)


def _permuted(config: DecoderConfig, key: str) -> Tensor | None:
    """llama.cpp's llama turns rotary pairs (2i, 2i + 1): rows of q and k lie in that order."""
    for part, heads in (("q_proj", config.heads), ("k_proj", config.kv_heads)):
        if f".{part}." in key:
            return interleaved_rows(heads, config.head_dim)
    return None


_REORDERED: dict[str, Callable[[DecoderConfig, str], Tensor | None]] = {"llama": _permuted}
"""Architectures whose files have rows in another order: key -> rows of the family's layout, in the file's order."""

_SHIFTED: set[str] = set()
"""Architectures whose files keep 1 + the gain that the family's layout has."""


def _reorder(architecture: str, config: DecoderConfig, key: str) -> Tensor | None:
    made = _REORDERED.get(architecture)
    return None if made is None else made(config, key)


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def by_parameter(pieces: Iterable[TensorPiece]) -> Iterator[tuple[str, list[TensorPiece]]]:
    """Yield each parameter's name with the pieces that fill it."""
    for name, group in groupby(pieces, key=lambda piece: piece.name):
        yield name, list(group)
