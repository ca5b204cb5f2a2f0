"""Layers by the names that PEFT adapters use: those of the base's Hugging Face form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from limbeck.errors import TechniqueError
from limbeck.formats.families.table import FAMILIES, family_of, pieces
from limbeck.model.config import DecoderConfig

__all__ = ["AdapterPlace", "places", "shorten"]

_BLOCK = re.compile(r"^.*\.\d+\.")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """One linear layer of the Hugging Face model.

    Attributes:
        name: the layer here.
        rows: the output rows that it has there.
        inputs: its input width.
        parts: the named parts of those rows, each with its rows within the place.
        order: rows of the layer here, in the order of the Hugging Face layer's; None: the same.
        fan_in_fan_out: the Hugging Face layer keeps its weight as (in, out).
    """

    name: str
    rows: slice
    inputs: int
    parts: Mapping[str, slice]
    order: Tensor | None = None
    fan_in_fan_out: bool = False

    @property
    def outputs(self) -> int:
        """Its output width."""
        return int(self.rows.stop - self.rows.start)


def places(config: DecoderConfig) -> dict[str, AdapterPlace]:
    """Return the Hugging Face model's linear layers by name, the head last.

    Raises:
        TechniqueError: no Hugging Face family says this decoder.
    """
    family, odd = family_of(config)
    if family is None:
        raise TechniqueError(f"no Hugging Face family says this model ({odd}), so peft has no names for its layers")
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    fused = {"qkv": {"q": q, "k": kv, "v": kv}}
    if config.gated:
        fused["up"] = {"gate": config.ffn_width, "up": config.ffn_width}
    out = {}
    for piece in pieces(family, config):
        key, name = piece.key.removesuffix(".weight"), piece.name.removesuffix(".weight")
        if piece.key == key or not name.startswith("blocks.") or len(piece.shape) != 2:
            continue
        outputs, inputs = piece.shape[::-1] if piece.transposed else piece.shape
        leaf = name.rpartition(".")[2]
        rows = piece.rows if isinstance(piece.rows, slice) else slice(0, outputs)
        place = _place(name, rows, inputs, fused.get(leaf, {leaf: outputs}))
        order = piece.rows if isinstance(piece.rows, Tensor) else None
        out[key] = replace(place, order=order, fan_in_fan_out=piece.transposed)
    head = FAMILIES[family].head.removesuffix(".weight")
    out[head] = _place("head", slice(0, config.vocab_size), config.hidden_size, {"head": config.vocab_size})
    return out


def _place(name: str, rows: slice, inputs: int, sizes: Mapping[str, int]) -> AdapterPlace:
    parts, at = {}, 0
    for part, size in sizes.items():
        if rows.start <= at < rows.stop:
            parts[part] = slice(at - rows.start, at - rows.start + size)
        at += size
    return AdapterPlace(name, rows, inputs, parts)


def _leaf(key: str) -> str:
    """Return a layer's name within its block: ``attn.c_attn`` of ``transformer.h.0.attn.c_attn``."""
    return _BLOCK.sub("", key)


def shorten(values: Mapping[str, T], known: Mapping[str, Any]) -> dict[str, T]:
    """Name a value once where all blocks' layers of one leaf have it; else by full names."""
    same: dict[str, list[str]] = {}
    for key in known:
        same.setdefault(_leaf(key), []).append(key)
    out: dict[str, T] = {}
    for key, value in values.items():
        alike = all(k in values and values[k] == value for k in same[_leaf(key)])
        out[_leaf(key) if alike else key] = value
    return out
