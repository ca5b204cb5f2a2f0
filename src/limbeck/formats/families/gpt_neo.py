"""GPT-Neo (TinyStories' checkpoints): local attention in some layers, scores that are not scaled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.families.family import LARGEST, Family, activation, activation_name, fused, norm, one
from limbeck.formats.families.llama import window_of
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern, Causal, Sliding

__all__ = ["GPT_NEO"]


def _read(s: ConfigReader) -> dict[str, Any]:
    layers, width = s.size("num_layers", most=LARGEST["layers"]), s.size("hidden_size", most=LARGEST["hidden_size"])
    return {
        "vocab_size": s.size("vocab_size", most=LARGEST["vocabulary"]),
        "context": s.size("max_position_embeddings"),
        "layers": layers,
        "hidden_size": width,
        "heads": s.size("num_heads"),
        "ffn_width": s.size("intermediate_size", 0) or 4 * width,
        "norm_eps": s.number("layer_norm_epsilon", 1e-5),
        "activation": activation(s, "activation_function", "gelu_new"),
        "qkv_bias": False,
        "attention_scale": 1.0,
        "tied": s.flag("tie_word_embeddings", True),
        "dropout": s.number("resid_dropout", 0.0),
        "pattern": _pattern(s, layers),
    }


def _pattern(s: ConfigReader, layers: int) -> AnyPattern | tuple[AnyPattern, ...]:
    """Expand ``attention_types``, [[kinds, how often], ...]; ``attention_layers`` is its expansion, one a layer."""
    window, given, types = s.size("window_size", 256), s.get("attention_layers"), s.get("attention_types")
    if types is None:
        types = [[["global", "local"], 12]]
    try:
        kinds = [kind for group, times in types for _ in range(min(int(times), layers + 1)) for kind in group]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or not all(kind in ("global", "local") for kind in kinds):
        raise ModelError(f"{s.where} has attention_types that are not 'global' or 'local' for each of {layers} layers")
    if given is not None and list(given) != kinds:
        raise ModelError(f"{s.where} has attention_layers that are not what its attention_types say")
    patterns = tuple(Sliding(window=window) if kind == "local" else Causal() for kind in kinds)
    return patterns[0] if len(set(patterns)) == 1 else patterns


def _write(c: DecoderConfig) -> dict[str, Any]:
    kinds = ["local" if isinstance(c.pattern_at(i), Sliding) else "global" for i in range(c.layers)]
    return {
        "max_position_embeddings": c.context,
        "hidden_size": c.hidden_size,
        "num_layers": c.layers,
        "num_heads": c.heads,
        "intermediate_size": c.ffn_width,
        "activation_function": activation_name(c, "gelu_new"),
        "layer_norm_epsilon": c.norm_eps,
        "attention_types": [[[kind], 1] for kind in kinds],
        "attention_layers": kinds,
        "window_size": window_of(c) or 256,
        "resid_dropout": c.dropout,
        "embed_dropout": c.dropout,
        "attention_dropout": c.dropout,
    }


def _pieces(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f = c.hidden_size, c.ffn_width
    yield TensorPiece(f"{stack}wte.weight", "embed.weight", (c.vocab_size, w))
    yield TensorPiece(f"{stack}wpe.weight", "positions.weight", (c.context, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}h.{i}"
        parts = {f"{h}.attn.attention.{part}_proj": w for part in "qkv"}
        yield from norm(f"{h}.ln_1", f"{block}.attention_norm", w, bias=True)
        yield from fused(f"{block}.attention.qkv", parts, w, False)
        yield from one(f"{h}.attn.attention.out_proj", f"{block}.attention.out", w, w, True)
        yield from norm(f"{h}.ln_2", f"{block}.ffn_norm", w, bias=True)
        yield from one(f"{h}.mlp.c_fc", f"{block}.ffn.up", f, w, True)
        yield from one(f"{h}.mlp.c_proj", f"{block}.ffn.down", w, f, True)
    yield from norm(f"{stack}ln_f", "norm", w, bias=True)


GPT_NEO = Family(
    "gpt_neo",
    "GPTNeoForCausalLM",
    _read,
    _write,
    _pieces,
    prefix="transformer.",
    first="wte.weight",
    usual="gelu_tanh",
    harmless=frozenset(
        {
            "embed_dropout",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),  # fmt: skip
    ignored=re.compile(r"(transformer\.)?h\.\d+\.attn\.attention\.(bias|masked_bias)"),
)
