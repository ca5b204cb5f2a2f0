"""What all quantizers share: which matrices they take, on which grid, and the walk that puts codes in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from limbeck.errors import TechniqueError, nearest
from limbeck.kernels.packed_layout import Codes
from limbeck.model.decoder import Decoder
from limbeck.model.linear import Linear
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight, is_quantized
from limbeck.model.surgery import find, matches, replace
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.technique import Technique

__all__ = ["WeightMatrix", "Quantizer", "install", "matrices", "refuse_quantized", "deployed_spec_of", "round_all"]


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """One weight to quantize.

    Attributes:
        name: dotted name of the module; of the embedding where the head is tied to it.
        module: the module, linear or embedding.
        grid: the numbers it may take.
    """

    name: str
    module: nn.Linear | nn.Embedding
    grid: Grid

    @property
    def bytes(self) -> int:
        """Bytes of codes and scales on this grid."""
        return self.grid.layout(*self.module.weight.shape).bytes


class Quantizer(Technique):
    """Base of the techniques that put weights on grids; also their own deployed spec, as the grids rebuild the model.

    Linear layers, the token embedding and the head are quantized; a tied head shares the embedding's codes. Learned
    positions stay as they are (under 1 % of a model, and GGUF keeps them too) unless an override names them.
    """

    rounds: ClassVar[bool] = True
    post_training: ClassVar[bool] = True

    bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = Field(
        None, description="short for a grid: 8 is int8 by channel, 2 to 7 are int2 to int7 in groups of 32"
    )
    grid: Annotated[Grid, Field(validate_default=True)] = Grid()
    embeddings: bool = Field(True, description="quantize the token embedding, and with it a tied head")
    head: bool = Field(True, description="quantize an untied head")
    overrides: dict[str, Grid | None] = Field(
        default_factory=dict, description="grids by pattern of names, first match wins; null leaves a module as it is"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_bits(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("bits") in range(2, 9) and "grid" not in values:
            return {**values, "grid": {"format": f"int{values['bits']}"}}
        return values

    @model_validator(mode="after")
    def _bits_agree(self) -> Quantizer:
        if self.bits is not None and self.bits != self.grid.bits:
            raise ValueError(f"bits {self.bits} and grid {self.grid.format} disagree: give one of them")
        return self

    def grid_of(self, name: str) -> Grid | None:
        """Return the grid of the module called ``name``; None: it stays as it is."""
        for pattern, grid in self.overrides.items():
            if matches(name, (pattern,)):
                return grid
        if name == "embed":
            return self.grid if self.embeddings else None
        if name == "head":
            return self.grid if self.head else None
        return None if name == "positions" else self.grid

    def stated_bytes(self, model: Decoder) -> int:
        """Return exact bytes of the quantized model, told from the full one."""
        chosen = matrices(model, self)
        dense = sum(m.module.weight.numel() * m.module.weight.itemsize for m in chosen)
        return model.count_bytes() - dense + sum(m.bytes for m in chosen)

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        """Return empty quantized modules in place of the weights, which are dropped unread; on "meta" no memory is
        touched.
        """
        install(
            model,
            matrices(model, self),
            lambda m: m.grid.layout(*m.module.weight.shape).empty(m.module.weight.device),
        )
        return model


def deployed_spec_of(model: Decoder, plan: Quantizer, grids: Iterable[Grid] = (), always: bool = False) -> Quantizer:
    """Return ``plan``, or where it does not describe ``model`` (any more) its like with the grid of every weight by
    name.

    A plan that speaks of blocks by number ceases to describe a model that lost blocks since.

    Args:
        model: quantized, perhaps under adapters.
        plan: by which it was quantized.
        grids: others that its weights may be on.
        always: name every grid in any case.
    """
    with torch.device("meta"):
        plain = Decoder(model.config)
    held = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedWeight)}
    known = [g for g in (*plan.overrides.values(), *grids, plan.grid) if g is not None]
    found: dict[str, Grid | None] = {}
    for name in _weights(plain):
        weight = next((m for at, m in held.items() if at.startswith(f"{name}.")), None)
        if weight is None:
            found[name] = None
            continue
        layout, planned = weight.layout, plan.grid_of(name)
        first = known if planned is None else [planned, *known]
        found[name] = next(g for g in first if g.layout(layout.rows, layout.columns) == layout)
    told = all(plan.grid_of(name) == grid for name, grid in found.items())
    used = all(any(matches(name, (pattern,)) for name in found) for pattern in plan.overrides)
    return plan if told and used and not always else plan.model_copy(update={"overrides": found})


def _weights(model: Decoder) -> dict[str, nn.Module]:
    """Linear layers and embeddings by name; a tied head is its embedding and has no place of its own."""
    tied = _tied(model)
    return find(model, lambda _, m: isinstance(m, nn.Linear | nn.Embedding) and not (tied and m is model.head))


def refuse_quantized(model: Decoder, who: str) -> None:
    """Stop a second quantization.

    Raises:
        TechniqueError: the model holds quantized weights.
    """
    if is_quantized(model):
        raise TechniqueError(f"the model is quantized already: give {who} the full-precision model it came from")


def matrices(model: Decoder, plan: Quantizer) -> list[WeightMatrix]:
    """Return the weights that ``plan`` quantizes, in the model's order.

    Raises:
        TechniqueError: the model is quantized already, an override matches no module, or nothing is left to quantize.
    """
    refuse_quantized(model, plan.name)
    found = _weights(model)
    with torch.device("meta"):
        shape = dict(Decoder(model.config).named_modules())
    for name, module in model.named_modules():
        known = shape.get(name)
        if isinstance(known, nn.Linear | nn.Embedding) and not isinstance(module, nn.Linear | nn.Embedding):
            raise TechniqueError(f"{name} holds more than a weight by now: {plan.name} goes before what was done to it")
    for pattern in plan.overrides:
        if not any(matches(name, (pattern,)) for name in found):
            hint = nearest(pattern, found)
            raise TechniqueError(f"override '{pattern}' of {plan.name} matches no linear layer or embedding{hint}")
    out = []
    for name, module in found.items():
        assert isinstance(module, nn.Linear | nn.Embedding)
        grid = plan.grid_of(name)
        if grid is not None:
            out.append(WeightMatrix(name, module, grid))
    if not out:
        raise TechniqueError(f"{plan.name} leaves every weight of the model as it is")
    return out


def _tied(model: Decoder) -> bool:
    return isinstance(model.embed, nn.Embedding) and getattr(model.head, "weight", None) is model.embed.weight


@torch.no_grad()
def install(model: Decoder, chosen: list[WeightMatrix], make: Callable[[WeightMatrix], Codes]) -> None:
    """Replace each matrix by a module on its codes, one at a time, so that only one is in memory twice."""
    by_name = {m.name: m for m in chosen}
    tied = _tied(model)

    def build(name: str, module: nn.Module) -> nn.Module:
        matrix = by_name[name]
        weight = QuantizedWeight(make(matrix), matrix.module.weight.dtype)
        module.register_parameter("weight", None)  # frees it now: the walk holds the old modules to its end
        if isinstance(module, nn.Embedding):
            return QuantizedEmbedding(weight)
        assert isinstance(module, nn.Linear)
        parts = module.parts if isinstance(module, Linear) else {"out": module.out_features}
        return QuantizedLinear(weight, parts, module.bias)

    replace(model, lambda name, _: name in by_name, build)
    if tied and isinstance(model.embed, QuantizedEmbedding):
        model.head = QuantizedLinear(model.embed.quantized, model.head.parts, None, borrowed=True)  # type: ignore[assignment]


def round_all(model: Decoder, plan: Quantizer, clip: Literal["none", "search"]) -> None:
    """Round every matrix of ``plan`` to the nearest numbers of its grid."""
    install(model, matrices(model, plan), lambda m: encode(m.module.weight, m.grid, clip))
