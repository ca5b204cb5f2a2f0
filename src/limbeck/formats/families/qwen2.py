"""Qwen2 and 2.5: biases on q, k and v; windows in upper layers."""

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

__all__ = ["QWEN2", "qwen_pattern", "qwen_windows"]


def qwen_pattern(s: ConfigReader, layers: int) -> Any:
    """Read which layers slide: ``layer_types``, else those from ``max_window_layers`` on, where windows are in use.

    transformers takes the window away where ``use_sliding_window`` is false; sliding layers would then have none, and
    ``layer_patterns`` refuses them.
    """
    used = s.flag("use_sliding_window", False)
    window = s.size("sliding_window", 4096, null=0) if used else 0
    s.skip("sliding_window")
    first = s.size("max_window_layers", 28, least=0)
    kinds = s.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    return layer_patterns(s, window, kinds, layers)


def qwen_windows(c: DecoderConfig) -> dict[str, Any]:
    """Return the values that say which layers slide."""
    window = window_of(c)
    return {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": layer_types(c)}


def _read(s: ConfigReader) -> dict[str, Any]:
    fields = read_llama(s)
    return {**fields, "qkv_bias": True, "pattern": qwen_pattern(s, fields["layers"])}


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(c), **qwen_windows(c)}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read, _write, llama_pieces)
