"""Tensors of a file against parameters of a model: one mapping, read both ways and checked before any allocation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointError
from limbeck.formats.weights import TensorHeader

__all__ = ["TensorPiece", "Source", "check", "check_dtype", "fill", "meta", "places", "write_order"]

_FLOATS = {"F64", "F32", "F16", "BF16"}
_NAMES = {
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """One tensor of a file and where it stands in the model.

    Attributes:
        key: the tensor's name in the file.
        name: dotted name of the parameter or buffer here.
        shape: its shape in the file.
        rows: the rows of the parameter that it fills, where several are fused into one, in the file's order; None: all.
        transposed: it lies as (in, out) in the file, as GPT-2's Conv1D does.
        lead: rows of the file before the first that is kept; they are written as zeros.
        shift: what the parameter holds beyond the file's numbers: 1 for gains that a family keeps as gain - 1.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    rows: slice | Tensor | None = None
    transposed: bool = False
    lead: int = 0
    shift: float = 0.0

    def take(self, parameter: Tensor) -> Tensor:
        """Return the file's tensor: a view of the parameter where the file has the same numbers in the same order."""
        part = parameter if self.rows is None else parameter[self.rows]
        if self.shift:
            part = part - self.shift
        if self.lead:
            part = torch.cat((part.new_zeros(self.lead, *part.shape[1:]), part))
        return part.T if self.transposed else part

    def put(self, parameter: Tensor, values: Tensor, at: slice | Tensor = slice(None)) -> None:
        """Write rows ``at`` of the file's tensor, with these ``values``, into the parameter."""
        if self.transposed:
            parameter = parameter.T
        if self.lead or self.rows is not None:
            index = torch.arange(self.shape[0], device="cpu")[at] - self.lead
            if self.lead:
                values, index = values[index >= 0], index[index >= 0]
            at = _within(self.rows, index)
        parameter[at] = (values + self.shift if self.shift else values).to(parameter.dtype)


def _within(rows: slice | Tensor | None, index: Tensor) -> slice | Tensor:
    """Return the rows of a parameter that rows ``index`` of a file are; a slice where they follow one another."""
    if isinstance(rows, Tensor):
        return rows[index]
    index = index + (rows.start if rows is not None else 0)
    follows = bool((index.diff() == 1).all()) and len(index) > 0
    return slice(int(index[0]), int(index[-1]) + 1) if follows else index


class Source(Protocol):
    """Where tensors come from: a folder of safetensors, or a GGUF file.

    Attributes:
        where: its name, for messages.
        headers: key -> file, shape and dtype of every tensor.
    """

    where: str
    headers: dict[str, TensorHeader]

    def parts(self, key: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield rows of a tensor, and which they are, until all are told."""
        ...


def check(pieces: Iterable[TensorPiece], weights: Source, ignored: Callable[[str], bool]) -> None:
    """Compare what a model needs with what the headers say; nothing is read or allocated.

    ``pieces`` may be a long generator: it stops at the first that does not fit.

    Raises:
        CheckpointError: a key is missing or is one too many, or a shape or dtype does not fit; names file and key.
    """
    seen = set()
    for piece in pieces:
        header = weights.headers.get(piece.key)
        if header is None:
            raise CheckpointError(f"{weights.where} lacks the key '{piece.key}' that its config.json asks for")
        if header.shape != piece.shape:
            raise CheckpointError(
                f"'{piece.key}' in {header.file} has shape {header.shape}, but its config.json asks for {piece.shape}"
            )
        seen.add(piece.key)
    extra = [key for key in weights.headers if key not in seen and not ignored(key)]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        file = weights.headers[extra[0]].file
        raise CheckpointError(f"{file} holds the key '{extra[0]}'{more} that its config.json has no place for")


def check_dtype(key: str, header: TensorHeader, wanted: torch.dtype) -> None:
    """Refuse a tensor whose dtype does not suit its place: floats are cast to floats; anything else, codes of 8-bit
    floats too, must be what the place is.

    Raises:
        CheckpointError: it does not load into ``wanted``.
    """
    fits = header.dtype == _NAMES[wanted] if wanted in _NAMES else wanted.is_floating_point and header.dtype in _FLOATS
    if not fits:
        wanted_name = str(wanted).removeprefix("torch.")
        raise CheckpointError(f"'{key}' in {header.file} holds {header.dtype}, which does not load into {wanted_name}")


def meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without memory: parameters have shape and dtype but no values."""
    with torch.device("meta"):
        return build()


def places(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and saved buffer once, by its first name: a tied head stands under the embedding's."""
    names: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            names[name] = tensor
    return names


@torch.no_grad()
def fill(
    model: nn.Module,
    pieces: Sequence[TensorPiece],
    weights: Source,
    device: torch.device | str,
    later: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give a model built on the meta device its values, tensor by tensor, each cast to the dtype of its place.

    Beside the model itself at most one parameter's pages of the file are held. Tied parameters stay tied.

    Args:
        model: the model.
        pieces: what fills it.
        weights: where the values are.
        device: where they go.
        later: does the caller fill the parameter or buffer of this name?

    Raises:
        CheckpointError: a tensor's dtype does not fit its place.
    """
    targets = places(model)
    for piece in pieces:
        check_dtype(piece.key, weights.headers[piece.key], targets[piece.name].dtype)
    homes = _homes(model)
    for name, group in itertools.groupby(pieces, key=lambda piece: piece.name):
        old = targets[name]
        new = torch.empty(old.shape, dtype=old.dtype, device=device)
        for piece in group:
            for at, values in weights.parts(piece.key):
                piece.put(new, values, at)
        value = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        for module, leaf in homes[id(old)]:
            setattr(module, leaf, value)
    every = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, tensor in every if tensor.is_meta and not later(name)]
    if left:
        raise TypeError(f"nothing fills {', '.join(left)}: a skeleton keeps all its values in its state_dict")


def _homes(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each tensor hangs: its identity -> every module and attribute that holds it."""
    homes: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                homes.setdefault(id(tensor), []).append((module, leaf))
    return homes


def write_order(model: nn.Module, pieces: Iterable[TensorPiece]) -> Iterator[tuple[str, Tensor]]:
    """Yield (key, tensor) of each piece, as views of the model's parameters where the numbers are the same."""
    held = places(model)
    for piece in pieces:
        yield piece.key, piece.take(held[piece.name].detach())
