"""What reads and what writes the residual stream, and norms folded into what reads them: shared by techniques."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import TechniqueError
from limbeck.model.decoder import Block, Decoder
from limbeck.model.linear import Linear

__all__ = [
    "Reader",
    "blocks",
    "check_plain",
    "fold_norm",
    "has_bias",
    "readers",
    "set_weight",
    "shift_of",
    "untie",
    "wide",
]

_LARGEST_SHIFT = 1e3  # of a norm's bias over its gain: beyond, fp32 loses what the logits need


class Reader(NamedTuple):
    """A norm, and the one linear layer that reads it."""

    name: str
    norm: nn.LayerNorm | nn.RMSNorm
    layer: nn.Linear


def blocks(model: Decoder) -> Iterator[Block]:
    """Yield the blocks with their type."""
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block


def readers(model: Decoder) -> list[Reader]:
    """Return norms and their readers from first to last, the head included."""
    out = []
    for i, b in enumerate(blocks(model)):
        out.append(Reader(f"blocks.{i}.attention_norm", b.attention_norm, b.attention.qkv))  # type: ignore[arg-type]
        out.append(Reader(f"blocks.{i}.ffn_norm", b.ffn_norm, b.ffn.up))  # type: ignore[arg-type]
    return [*out, Reader("norm", model.norm, model.head)]


def check_plain(model: Decoder, who: str) -> None:
    """Stop before weights that are no free matrices any more.

    Raises:
        TechniqueError: a linear layer or embedding is on a grid, under an adapter or under fake quantization.
    """
    with torch.device("meta"):
        shape = dict(Decoder(model.config).named_modules())
    for name, module in shape.items():
        known = type(module) in (nn.Linear, Linear, nn.Embedding)
        if known and type(model.get_submodule(name)) not in (nn.Linear, Linear, nn.Embedding):
            raise TechniqueError(f"{name} holds more than a weight by now: {who} goes before what was done to it")


def untie(model: Decoder) -> None:
    """Give a tied head a weight of its own, a copy of the embedding's."""
    if model.config.tied:
        shared = model.embed.weight
        model.head.weight = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
        model.config = model.config.model_copy(update={"tied": False})
        for block in blocks(model):
            block.attention.config = model.config


def wide(x: Tensor) -> Tensor:
    """Return ``x`` detached, in float64, in which weights are folded."""
    return x.detach().double()


@torch.no_grad()
def set_weight(parameter: Tensor, value: Tensor) -> None:
    """Write ``value`` (float64) into ``parameter`` in its own dtype."""
    parameter.copy_(value.to(parameter.dtype))


def has_bias(layer: nn.Linear) -> bool:
    """Return whether a constant can be folded into the layer (torch's annotations say that each has a bias)."""
    return getattr(layer, "bias", None) is not None


def shift_of(reader: Reader) -> Tensor | None:
    """Return the bias / gain that stays in the norm once its reader has the gain; None where that takes it.

    Raises:
        TechniqueError: a gain is too small for its bias.
    """
    norm = reader.norm
    if not isinstance(norm, nn.LayerNorm) or has_bias(reader.layer):
        return None
    gain, shift = wide(norm.weight), wide(norm.bias)
    shift = torch.where(shift == 0, 0.0, shift / gain)
    if float(shift.abs().max()) > _LARGEST_SHIFT:
        raise TechniqueError(
            f"{reader.name} has a gain that is nearly zero beside its bias, and what reads it has no bias: "
            "the gain cannot be folded without losing digits"
        )
    return shift


def fold_norm(reader: Reader) -> bool:
    """Move gain and bias of a norm into its reader, which leaves the function as it is; true where no bias stays.

    A bias goes into the reader's, W b; where that has none, bias / gain stays in the norm.

    Raises:
        TechniqueError: see ``shift_of``.
    """
    norm, layer = reader.norm, reader.layer
    kept = shift_of(reader)
    weight = wide(layer.weight)
    if isinstance(norm, nn.LayerNorm):
        if kept is None:
            set_weight(layer.bias, wide(layer.bias) + weight @ wide(norm.bias))
        set_weight(norm.bias, torch.zeros_like(wide(norm.bias)) if kept is None else kept)
    set_weight(layer.weight, weight * wide(norm.weight))
    set_weight(norm.weight, torch.ones_like(wide(norm.weight)))
    return kept is None
