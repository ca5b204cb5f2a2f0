"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limbeck.formats.families.family import LARGEST, Family, activation, activation_name, norm
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["GPT2"]


def _read(s: ConfigReader) -> dict[str, Any]:
    s.expect("scale_attn_weights", True)
    s.expect("scale_attn_by_inverse_layer_idx", False)
    s.expect("add_cross_attention", False)
    width = s.size("n_embd", most=LARGEST["hidden_size"])
    return {
        "vocab_size": s.size("vocab_size", most=LARGEST["vocabulary"]),
        "context": s.size("n_positions", s.size("n_ctx", 0)) or s.size("n_positions"),
        "layers": s.size("n_layer", most=LARGEST["layers"]),
        "hidden_size": width,
        "heads": s.size("n_head"),
        "ffn_width": s.size("n_inner", 0) or 4 * width,
        "norm_eps": s.number("layer_norm_epsilon", 1e-5),
        "activation": activation(s, "activation_function", "gelu_new"),
        "tied": s.flag("tie_word_embeddings", True),
        # The decoder has one rate; where a file has three, the one of the residual branches stands for them.
        "dropout": s.number("resid_pdrop", 0.1),
    }


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {
        "n_positions": c.context,
        "n_embd": c.hidden_size,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": None if c.ffn_width == 4 * c.hidden_size else c.ffn_width,
        "activation_function": activation_name(c, "gelu_new"),
        "layer_norm_epsilon": c.norm_eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
    }


def _pieces(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f = c.hidden_size, c.ffn_width
    yield TensorPiece(f"{stack}wte.weight", "embed.weight", (c.vocab_size, w))
    yield TensorPiece(f"{stack}wpe.weight", "positions.weight", (c.context, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}h.{i}"
        yield from norm(f"{h}.ln_1", f"{block}.attention_norm", w, bias=True)
        yield from _conv1d(f"{h}.attn.c_attn", f"{block}.attention.qkv", w, 3 * w)
        yield from _conv1d(f"{h}.attn.c_proj", f"{block}.attention.out", w, w)
        yield from norm(f"{h}.ln_2", f"{block}.ffn_norm", w, bias=True)
        yield from _conv1d(f"{h}.mlp.c_fc", f"{block}.ffn.up", w, f)
        yield from _conv1d(f"{h}.mlp.c_proj", f"{block}.ffn.down", f, w)
    yield from norm(f"{stack}ln_f", "norm", w, bias=True)


def _conv1d(key: str, name: str, inputs: int, outputs: int) -> Iterator[TensorPiece]:
    yield TensorPiece(f"{key}.weight", f"{name}.weight", (inputs, outputs), transposed=True)
    yield TensorPiece(f"{key}.bias", f"{name}.bias", (outputs,))


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    read=_read,
    write=_write,
    pieces=_pieces,
    prefix="transformer.",
    first="wte.weight",
    # heads of a classifier on top, and an order of arithmetic that changes no number beyond rounding
    usual="gelu_tanh",
    harmless=frozenset(
        {
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "reorder_and_upcast_attn",
        }
    ),  # fmt: skip
    # The causal mask that GPT-2's checkpoints on the Hub carry as a buffer; it is no weight.
    ignored=re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"),
)
