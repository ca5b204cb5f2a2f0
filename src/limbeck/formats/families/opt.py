"""OPT (Zhang et al. 2022): learned positions after two unused rows, ReLU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.families.family import LARGEST, Family, activation, activation_name, fused, norm, one
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["OPT"]

_OFFSET = 2  # rows of the table of positions before that of position 0


def _read(s: ConfigReader) -> dict[str, Any]:
    s.expect("do_layer_norm_before", True)  # false in opt-350m alone
    s.expect("_remove_final_layer_norm", False)
    s.expect("layer_norm_elementwise_affine", True)
    width, bias = s.size("hidden_size", most=LARGEST["hidden_size"]), s.flag("enable_bias", True)
    projected = s.size("word_embed_proj_dim", width)
    if projected != width:
        raise ModelError(
            f"{s.where} has word_embed_proj_dim = {projected}: only {width}, its hidden_size, is supported"
        )
    return {
        "vocab_size": s.size("vocab_size", most=LARGEST["vocabulary"]),
        "context": s.size("max_position_embeddings"),
        "layers": s.size("num_hidden_layers", most=LARGEST["layers"]),
        "hidden_size": width,
        "heads": s.size("num_attention_heads"),
        "ffn_width": s.size("ffn_dim"),
        "activation": activation(s, "activation_function", "relu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": bias,
        "tied": s.flag("tie_word_embeddings", True),
        "dropout": s.number("dropout", 0.1),
    }


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": c.context,
        "hidden_size": c.hidden_size,
        "word_embed_proj_dim": c.hidden_size,
        "ffn_dim": c.ffn_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "activation_function": activation_name(c, "gelu_new"),
        "enable_bias": c.qkv_bias,
        "do_layer_norm_before": True,
        "dropout": c.dropout,
        "attention_dropout": c.dropout,
    }


def _pieces(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f, bias = c.hidden_size, c.ffn_width, c.qkv_bias
    yield TensorPiece(f"{stack}embed_tokens.weight", "embed.weight", (c.vocab_size, w))
    yield TensorPiece(f"{stack}embed_positions.weight", "positions.weight", (c.context + _OFFSET, w), lead=_OFFSET)
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}layers.{i}"
        parts = {f"{h}.self_attn.{part}_proj": w for part in "qkv"}
        yield from norm(f"{h}.self_attn_layer_norm", f"{block}.attention_norm", w, bias=True)
        yield from fused(f"{block}.attention.qkv", parts, w, bias)
        yield from one(f"{h}.self_attn.out_proj", f"{block}.attention.out", w, w, bias)
        yield from norm(f"{h}.final_layer_norm", f"{block}.ffn_norm", w, bias=True)
        yield from one(f"{h}.fc1", f"{block}.ffn.up", f, w, bias)
        yield from one(f"{h}.fc2", f"{block}.ffn.down", w, f, bias)
    yield from norm(f"{stack}final_layer_norm", "norm", w, bias=True)


OPT = Family(
    "opt",
    "OPTForCausalLM",
    _read,
    _write,
    _pieces,
    prefix="model.decoder.",
    usual="relu",
    harmless=frozenset({"layerdrop", "init_std"}),
    ignored=re.compile(r"(?!)"),
)
