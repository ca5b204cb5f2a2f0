"""Mistral: Llama with a sliding window, in every layer or, with ``layer_types``, in some."""

from __future__ import annotations

from typing import Any

from limbeck.formats.families.family import Family
from limbeck.formats.families.llama import (
    layer_patterns,
    layer_types,
    llama_pieces,
    read_llama,
    window_of,
    write_llama,
)
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import Causal, Sliding

__all__ = ["MISTRAL"]


def _read(s: ConfigReader) -> dict[str, Any]:
    fields, window = read_llama(s), s.size("sliding_window", 4096, null=0)
    kinds = s.get("layer_types")
    if kinds is not None:  # transformers' AutoModel takes such a file for a Ministral, whose layers alternate
        return {**fields, "pattern": layer_patterns(s, window, kinds, fields["layers"])}
    return {**fields, "pattern": Sliding(window=window) if window else Causal()}


def _write(c: DecoderConfig) -> dict[str, Any]:
    kinds = layer_types(c)
    mixed = {"layer_types": kinds} if len(set(kinds)) > 1 else {}
    return {**write_llama(c), "sliding_window": window_of(c), **mixed}


MISTRAL = Family("mistral", "MistralForCausalLM", _read, _write, llama_pieces)
