"""Gemma 2 and 3 (text): four norms a block, gains kept as gain - 1, scaled embeddings, GeGLU, alternating windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.families.family import Family
from limbeck.formats.families.llama import (
    layer_patterns,
    layer_types,
    llama_pieces,
    read_llama,
    window_of,
    write_llama,
)
from limbeck.formats.families.rope import scaling_of, write_rope
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig, Rope

__all__ = ["GEMMA2", "GEMMA3"]

_WINDOW = 4096
_HARMLESS = frozenset({"hidden_act"})  # older files have it beside hidden_activation, which alone counts


def _pieces(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    yield from llama_pieces(c, stack, shift=1.0)


def _shared(s: ConfigReader, every: int) -> dict[str, Any]:
    """Fields of both; of ``every`` layers one is not sliding."""
    if s.get("use_bidirectional_attention") not in (None, False):
        raise ModelError(f"{s.where} has use_bidirectional_attention: it attends both ways, which a decoder does not")
    fields = read_llama(s, act="hidden_activation", default="gelu_pytorch_tanh")
    layers, bias = fields["layers"], s.flag("attention_bias", False)
    kinds = s.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    return {
        **fields,
        "head_dim": s.size("head_dim", 256),
        "kv_heads": s.size("num_key_value_heads", 4),
        "qkv_bias": bias,
        "out_bias": bias,
        "tied": s.flag("tie_word_embeddings", True),
        "norm_at": "both",
        "embed_scale": math.sqrt(fields["hidden_size"]),
        "attention_scale": s.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "pattern": layer_patterns(s, s.size("sliding_window", _WINDOW, null=0), kinds, layers),
    }


def _cap(s: ConfigReader, key: str, default: float | None) -> float | None:
    """Read a soft bound; an explicit null is none."""
    if key in s.values and s.get(key) is None:
        return None
    return s.number(key) if key in s.values else default


def _written(c: DecoderConfig) -> dict[str, Any]:
    # transformers wants an int where it can be one; the square of a root is rarely exact
    scalar = (c.attention_scale or c.head_dim**-0.5) ** -2
    whole = round(scalar)
    return {
        **write_llama(c, act="hidden_activation"),
        "attention_bias": c.qkv_bias,
        "query_pre_attn_scalar": whole if whole**-0.5 == c.attention_scale else scalar,
        "sliding_window": window_of(c) or _WINDOW,
        "layer_types": layer_types(c),
        "final_logit_softcapping": c.logit_cap,
        "attn_logit_softcapping": c.score_cap,
    }


def _read2(s: ConfigReader) -> dict[str, Any]:
    caps = {
        "score_cap": _cap(s, "attn_logit_softcapping", 50.0),
        "logit_cap": _cap(s, "final_logit_softcapping", 30.0),
    }
    return {**_shared(s, 2), **caps}


def _read3(s: ConfigReader) -> dict[str, Any]:
    every = s.size("sliding_window_pattern", s.size("_sliding_window_pattern", 6))
    if (score := s.get("attn_logit_softcapping")) is not None:  # transformers passes it over in Gemma 3
        raise ModelError(f"{s.where} has attn_logit_softcapping {score}, which transformers does not compute here")
    theta, local, said = s.get("rope_theta"), s.get("rope_local_base_freq"), s.inner("rope_parameters")
    old = s.inner("rope_scaling")
    plain = {k: v for k, v in s.values.items() if k not in ("rope_parameters", "rope_scaling", "rope_theta")}
    fields = _shared(s.sharing(plain), every)
    whole, sliding = said.inner("full_attention"), said.inner("sliding_attention")
    scaled = ConfigReader({**old.values, **whole.values}, whole.where)
    return {
        **fields,
        "rope": {"theta": whole.number("rope_theta", _or(theta, 1e6)), "scaling": scaling_of(scaled, s)},
        "rope_local": {
            "theta": sliding.number("rope_theta", _or(local, 1e4)),
            "scaling": scaling_of(sliding, s),
        },
        "qk_norm": "head",
        "logit_cap": _cap(s, "final_logit_softcapping", None),
    }


def _or(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _write3(c: DecoderConfig) -> dict[str, Any]:
    values = {k: v for k, v in _written(c).items() if k not in ("rope_theta", "rope_scaling", "rope_parameters")}
    local = c.rope_local or Rope()
    whole = write_rope(c.rope)
    ropes = {
        "full_attention": whole["rope_parameters"],
        "sliding_attention": write_rope(local)["rope_parameters"],
    }
    old = {"rope_scaling": whole["rope_scaling"]} if "rope_scaling" in whole else {}
    del values["attn_logit_softcapping"]
    return {
        **values,
        "rope_parameters": ropes,
        "rope_theta": c.rope.theta,
        "rope_local_base_freq": local.theta,
        "sliding_window_pattern": 6,
        **old,
    }


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _read2, _written, _pieces, usual="gelu_tanh", harmless=_HARMLESS)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read3, _write3, _pieces, usual="gelu_tanh", harmless=_HARMLESS)
