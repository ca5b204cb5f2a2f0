"""OLMo 2: a branch is normalised after, queries and keys over all heads."""

from __future__ import annotations

from typing import Any

from limbeck.formats.families.family import Family
from limbeck.formats.families.llama import llama_pieces, read_llama, write_llama
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["OLMO2"]


def _read(s: ConfigReader) -> dict[str, Any]:
    bias = s.flag("attention_bias", False)
    epsilon = s.number("rms_norm_eps", 1e-5)
    fields = {**read_llama(s), "norm_eps": epsilon, "qkv_bias": bias, "out_bias": bias}
    return {**fields, "norm_at": "after", "qk_norm": "all"}


def _write(c: DecoderConfig) -> dict[str, Any]:
    values = write_llama(c)
    del values["head_dim"]  # the family has no such key
    return {**values, "attention_bias": c.qkv_bias}


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", _read, _write, llama_pieces)
