"""Linear layers with low-rank adapters beside them, and what is asked of a model that holds such (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.kernels.adapted import adapted_linear
from limbeck.kernels.fused_head.divergence import plain_linear

__all__ = ["AdapterGroup", "LoRALinear", "adapters", "sizes", "switched_off", "untouched"]


@dataclass(frozen=True, slots=True)
class AdapterGroup:
    """Output rows of one linear layer that share one adapter.

    Attributes:
        name: a part's name, or the layer's where several parts are one adapter; the adapter's key.
        rows: the output rows, ascending slices of the layer's.
        rank: rank of the adapter.
        scale: factor on B A: alpha / rank, or alpha / sqrt(rank).
    """

    name: str
    rows: tuple[slice, ...]
    rank: int
    scale: float

    @property
    def size(self) -> int:
        """Number of output rows."""
        return sum(r.stop - r.start for r in self.rows)


class LoRALinear(nn.Module):
    """``base(x) + scale B A x``, with an A and a B for each group of output rows.

    The base may be any module with ``in_features``, ``out_features`` and a forward, a quantized one too.

    Attributes:
        base: the frozen layer.
        lora_a: (rank, in_features) by group name.
        lora_b: (rows of the group, rank) by group name.
        groups: the groups, in the order of their rows.
        parts: the base's named parts of the output, name -> rows.
        on: whether the adapter does anything; see ``switched_off``.
    """

    def __init__(
        self,
        base: nn.Module,
        groups: Sequence[AdapterGroup],
        *,
        parts: Mapping[str, int],
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = sizes(base)
        self.groups, self.parts, self.dropout, self.on = tuple(groups), dict(parts), dropout, True
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        for g in self.groups:  # one by one: a mapping would be sorted
            self.lora_a[g.name] = torch.empty(g.rank, self.in_features, **made)
            self.lora_b[g.name] = torch.zeros(g.size, g.rank, **made)

    def _a(self) -> Tensor:
        """(ranks, in_features): every A, stacked, so that one matmul serves all groups."""
        if len(self.groups) == 1:
            return cast(Tensor, self.lora_a[self.groups[0].name])
        return torch.cat([self.lora_a[g.name] for g in self.groups])

    def _b(self, dtype: torch.dtype | None = None) -> Tensor:
        """(out_features, ranks): every B, scaled in ``dtype`` or its own, in its rows and columns; zero elsewhere."""
        ranks = sum(g.rank for g in self.groups)
        first: Tensor = self.lora_b[self.groups[0].name]
        if len(self.groups) == 1 and self.groups[0].size == self.out_features:
            return first.to(dtype or first.dtype) * self.groups[0].scale
        b, column = first.new_zeros(self.out_features, ranks, dtype=dtype), 0
        for g in self.groups:
            scaled, row = self.lora_b[g.name].to(b.dtype) * g.scale, 0
            for rows in g.rows:
                b[rows, column : column + g.rank] = scaled[row : row + rows.stop - rows.start]
                row += rows.stop - rows.start
            column += g.rank
        return b

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the base's dtype."""
        plain = self._plain(x) if self.on else None
        if plain is not None:
            return adapted_linear(x, *plain, self._a().to(x.dtype), self._b().to(x.dtype))
        y: Tensor = self.base(x)
        if not self.on:
            return y
        z = F.linear(F.dropout(x, self.dropout, self.training), self._a().to(x.dtype)).to(y.dtype)
        # One addmm with a block-diagonal B reads and writes the wide output once. The blocks off the diagonal are
        # multiplied in vain: little beside a pass over the output for each group at rank 8, a loss at rank 256.
        flat = torch.addmm(y.reshape(-1, self.out_features), z.reshape(-1, z.shape[-1]), self._b().to(y.dtype).t())
        return flat.view_as(y)

    def _plain(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the base where base and adapter are one operation on ``x``."""
        if (
            (self.dropout and self.training)
            or torch.is_autocast_enabled(x.device.type)
            or torch.compiler.is_compiling()
        ):
            return None
        plain = plain_linear(self.base)
        return None if plain is None or any(p is not None and p.requires_grad for p in plain) else plain

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return (out_features, in_features) weight with the adapter in it, summed in float64 and rounded once."""
        a, b = self._a().double(), self._b(torch.float64)
        assert isinstance(self.base, nn.Linear)
        weight = self.base.weight
        return (weight.double() + b @ a).to(weight.dtype)


def sizes(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a linear layer of any kind."""
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return every adapted layer of ``model`` by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off for the length of a ``with``; ``model`` may be a wrapper."""
    layers = list(adapters(model).values())
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.on = True


def untouched(model: nn.Module) -> bool:
    """Return whether new adapters (B = 0) alone learn: switched off, the model is what training starts from."""
    layers = adapters(model)
    own = {id(p) for m in layers.values() for group in (m.lora_a, m.lora_b) for p in group.values()}
    alone = all(id(p) in own for p in model.parameters() if p.requires_grad)
    return bool(layers) and alone and not any(bool(b.any()) for m in layers.values() for b in m.lora_b.values())
