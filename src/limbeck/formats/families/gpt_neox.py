"""GPT-NeoX (Pythia): both branches read the block's input, a share of each head is rotated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.families.family import (
    LARGEST,
    Family,
    activation,
    activation_name,
    heads_together,
    norm,
    one,
)
from limbeck.formats.families.rope import read_rope, rotary_share, write_rope
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["GPT_NEOX"]


def _read(s: ConfigReader) -> dict[str, Any]:
    heads, width = s.size("num_attention_heads"), s.size("hidden_size", most=LARGEST["hidden_size"])
    rope = read_rope(s, share=True)
    if s.get("rotary_emb_base") is not None and "rope_theta" not in {**s.values, **s.inner("rope_parameters").values}:
        rope["theta"] = s.number("rotary_emb_base")
    bias = s.flag("attention_bias", True)
    rotary = int(width // heads * rotary_share(s, 0.25, "rotary_pct"))
    if rotary < 2:
        raise ModelError(f"{s.where} rotates {rotary} columns of a head: two at least make a pair")
    return {
        "vocab_size": s.size("vocab_size", most=LARGEST["vocabulary"]),
        "context": s.size("max_position_embeddings"),
        "layers": s.size("num_hidden_layers", most=LARGEST["layers"]),
        "hidden_size": width,
        "heads": heads,
        "ffn_width": s.size("intermediate_size"),
        "positions": "rope",
        "rope": rope,
        "rotary_width": rotary,
        "norm_eps": s.number("layer_norm_eps", 1e-5),
        "activation": activation(s, "hidden_act", "gelu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "parallel": s.flag("use_parallel_residual", True),
        "tied": s.flag("tie_word_embeddings", False),
        "dropout": s.number("hidden_dropout", 0.0),
    }


def _write(c: DecoderConfig) -> dict[str, Any]:
    share = c.rotary_width / c.head_dim
    rope = write_rope(c.rope, partial_rotary_factor=share)
    return {
        "max_position_embeddings": c.context,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "hidden_act": activation_name(c, "gelu_new"),
        "layer_norm_eps": c.norm_eps,
        "attention_bias": c.qkv_bias,
        "use_parallel_residual": c.parallel,
        "hidden_dropout": c.dropout,
        "attention_dropout": c.dropout,
        "rotary_pct": share,
        "rotary_emb_base": c.rope.theta,
        **rope,
    }


def _pieces(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f = c.hidden_size, c.ffn_width
    together = heads_together(c.heads, c.head_dim)
    yield TensorPiece(f"{stack}embed_in.weight", "embed.weight", (c.vocab_size, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}layers.{i}"
        yield from norm(f"{h}.input_layernorm", f"{block}.attention_norm", w, bias=True)
        yield from one(f"{h}.attention.query_key_value", f"{block}.attention.qkv", 3 * w, w, c.qkv_bias, together)
        yield from one(f"{h}.attention.dense", f"{block}.attention.out", w, w, c.out_bias)
        yield from norm(f"{h}.post_attention_layernorm", f"{block}.ffn_norm", w, bias=True)
        yield from one(f"{h}.mlp.dense_h_to_4h", f"{block}.ffn.up", f, w, True)
        yield from one(f"{h}.mlp.dense_4h_to_h", f"{block}.ffn.down", w, f, True)
    yield from norm(f"{stack}final_layer_norm", "norm", w, bias=True)


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _read,
    _write,
    _pieces,
    prefix="gpt_neox.",
    first="embed_in.weight",
    head="embed_out.weight",
    usual="gelu",
    # causal masks and rotary frequencies that Pythia's files carry as buffers
    ignored=re.compile(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
)
