"""Layers whose weight is codes and scales: a linear layer and an embedding, which a tied head shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.kernels.packed import Prepared, linear
from limbeck.kernels.packed_layout import Codes

__all__ = ["QuantizedEmbedding", "QuantizedLinear", "QuantizedWeight", "is_quantized"]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class QuantizedWeight(nn.Module):
    """One matrix (R, C) in the neutral layout, as buffers ``codes``, ``scales``, ``zeros`` and ``second``.

    Casting the model (``model.bfloat16()``) changes the dtype in which the layers answer, never what is stored.

    Attributes:
        layout: its shape and meaning.
        dtype: dtype of the numbers it gives out where no input tells, as in an embedding.
    """

    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    second: Tensor | None

    def __init__(self, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout, self.dtype = codes.layout, dtype
        self.register_buffer("codes", codes.codes)
        self.register_buffer("scales", codes.scales)
        self.register_buffer("zeros", codes.zeros)
        self.register_buffer("second", codes.second)
        self._prepared: Prepared | None = None

    def value(self) -> Codes:
        """Return the matrix as a value."""
        return Codes(self.layout, self.codes, self.scales, self.zeros, self.second)

    def take_codes(self, codes: Codes, device: torch.device | str = "cpu") -> None:
        """Hold ``codes`` of the same layout in place of what is held."""
        if codes.layout != self.layout:
            raise ValueError(f"codes of the layout {codes.layout} do not fit a matrix of the layout {self.layout}")
        self._prepared = None
        for name in ("codes", "scales", "zeros", "second"):
            value = getattr(codes, name)
            self._buffers[name] = None if value is None else value.to(device)

    def prepared(self) -> Prepared:
        """Return the matrix with its backends' packed forms, made once for the codes that it holds now."""
        if self._prepared is None:
            self._prepared = Prepared(self.value())
        return self._prepared

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return (R, C) numbers in ``dtype``; None: in the model's."""
        return self.value().decode(dtype or self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedWeight:
        """Move the buffers as ``fn`` says, seen as integers, so that no cast rounds a scale."""
        self._prepared = None
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer.view(_BITS[buffer.itemsize])).view(buffer.dtype)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what backends packed: copies and pickles do without it."""
        return {**self.__dict__, "_prepared": None}

    def extra_repr(self) -> str:
        """Show the layout."""
        return f"{self.layout.kind}, rows={self.layout.rows}, columns={self.layout.columns}, span={self.layout.span}"


class QuantizedLinear(nn.Module):
    """A linear layer on a ``QuantizedWeight``; it has the parts of ``Linear`` and no ``weight`` to train or merge into.

    Attributes:
        quantized: the matrix. A tied head only borrows the embedding's: then it is no child, and has no keys of its own
            in a state dict, so that the codes are stored once.
    """

    bias: nn.Parameter | None

    def __init__(
        self, quantized: QuantizedWeight, parts: Mapping[str, int], bias: nn.Parameter | None, borrowed: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = quantized.layout.columns, quantized.layout.rows
        self.parts = dict(parts)
        self.register_parameter("bias", bias)
        # a tuple hides it from nn.Module, so that it is stored once
        self._borrowed: tuple[QuantizedWeight, ...] = (quantized,) if borrowed else ()
        if not borrowed:
            self.own = quantized

    @property
    def borrowed(self) -> bool:
        """Is the matrix another module's?"""
        return bool(self._borrowed)

    @property
    def quantized(self) -> QuantizedWeight:
        """The matrix, its own or borrowed."""
        return self._borrowed[0] if self._borrowed else self.own

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(x, self.quantized.prepared(), self.bias)

    def rows(self, part: str) -> slice:
        """Return the output rows of one part."""
        names = list(self.parts)
        at = sum(self.parts[n] for n in names[: names.index(part)])
        return slice(at, at + self.parts[part])


class QuantizedEmbedding(nn.Module):
    """A table of which only the rows looked up are decoded."""

    def __init__(self, quantized: QuantizedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = quantized.layout.rows, quantized.layout.columns
        self.quantized = quantized

    def forward(self, ids: Tensor) -> Tensor:
        """Map (...) ids to (..., C) in the model's dtype."""
        rows = self.quantized.value().take(ids.reshape(-1)).decode(self.quantized.dtype)
        return rows.view(*ids.shape, self.embedding_dim)


def is_quantized(model: nn.Module) -> bool:
    """Return whether the model holds a quantized matrix."""
    return any(isinstance(m, QuantizedWeight) for m in model.modules())
