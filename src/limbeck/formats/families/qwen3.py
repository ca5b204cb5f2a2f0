"""Qwen3: queries and keys of each head are normalised."""

from __future__ import annotations

from typing import Any

from limbeck.formats.families.family import Family
from limbeck.formats.families.llama import llama_pieces, read_llama, write_llama
from limbeck.formats.families.qwen2 import qwen_pattern, qwen_windows
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["QWEN3"]


def _read(s: ConfigReader) -> dict[str, Any]:
    fields, bias = read_llama(s), s.flag("attention_bias", False)
    return {
        **fields,
        "head_dim": s.size("head_dim", 128),
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "head",
        "pattern": qwen_pattern(s, fields["layers"]),
    }


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(c), "attention_bias": c.qkv_bias, **qwen_windows(c)}


QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read, _write, llama_pieces)
