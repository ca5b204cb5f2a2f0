"""Llama, and what it has in common with its kin: sizes, sliding windows, tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.families.family import LARGEST, Family, activation, activation_name, fused, norm
from limbeck.formats.families.rope import read_rope, write_rope
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import AnyPattern, Causal, Sliding

__all__ = ["LLAMA", "layer_patterns", "layer_types", "llama_pieces", "read_llama", "window_of", "write_llama"]

_ROLLS, _FULL = "sliding_attention", "full_attention"


def read_llama(
    s: ConfigReader, *, act: str = "hidden_act", default: str = "silu", share: bool = False
) -> dict[str, Any]:
    """Return the fields that Llama and its kin share; biases are false.

    Args:
        s: the config.json.
        act: key of the activation.
        default: its value where the key is absent.
        share: the family may rotate a share of a head.
    """
    heads, width = s.size("num_attention_heads"), s.size("hidden_size", most=LARGEST["hidden_size"])
    return {
        "vocab_size": s.size("vocab_size", most=LARGEST["vocabulary"]),
        "context": s.size("max_position_embeddings"),
        "layers": s.size("num_hidden_layers", most=LARGEST["layers"]),
        "hidden_size": width,
        "heads": heads,
        "kv_heads": s.size("num_key_value_heads", 0) or heads,
        "head_dim": s.size("head_dim", 0),
        "ffn_width": s.size("intermediate_size"),
        "positions": "rope",
        "rope": read_rope(s, share=share),
        "norm": "rms",
        "norm_eps": s.number("rms_norm_eps", 1e-6),
        "activation": activation(s, act, default),
        "gated": True,
        "qkv_bias": False,
        "out_bias": False,
        "ffn_bias": False,
        "tied": s.flag("tie_word_embeddings", False),
        "dropout": s.number("attention_dropout", 0.0),
    }


def write_llama(c: DecoderConfig, *, act: str = "hidden_act") -> dict[str, Any]:
    """Return the values that Llama and its kin share."""
    return {
        "max_position_embeddings": c.context,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        act: activation_name(c, "gelu_pytorch_tanh"),
        "rms_norm_eps": c.norm_eps,
        "attention_dropout": c.dropout,
        **write_rope(c.rope),
    }


def layer_patterns(s: ConfigReader, window: int, kinds: object, layers: int) -> AnyPattern | tuple[AnyPattern, ...]:
    """Translate ``layer_types`` to attention patterns; one where all layers have the same.

    Raises:
        ModelError: they are not one of two names for each layer, or a window is needed and not given.
    """
    known = (_ROLLS, _FULL)
    if (
        not isinstance(kinds, Sequence)
        or len(kinds) != layers
        or not all(isinstance(k, str) and k in known for k in kinds)
    ):
        raise ModelError(f"{s.where} has layer_types that are not one of {', '.join(known)} for each layer")
    if _ROLLS in kinds and not window:
        raise ModelError(f"{s.where} has sliding layers in layer_types, but no sliding_window")
    patterns = tuple(Sliding(window=window) if k == _ROLLS else Causal() for k in kinds)
    return patterns[0] if len(set(patterns)) == 1 else patterns


def layer_types(c: DecoderConfig) -> list[str]:
    """Name the pattern of each layer as transformers does."""
    return [_ROLLS if isinstance(c.pattern_at(i), Sliding) else _FULL for i in range(c.layers)]


def window_of(c: DecoderConfig) -> int | None:
    """Return the window of the sliding layers; None without any."""
    return next((p.window for i in range(c.layers) if isinstance(p := c.pattern_at(i), Sliding)), None)


def llama_pieces(c: DecoderConfig, stack: str, *, shift: float = 0.0) -> Iterator[TensorPiece]:
    """Yield the tensors of Llama and its kin, in the order of the decoder's parameters.

    Norms have the names of the place where they stand: before, after, or (Gemma) both.

    Args:
        c: the decoder.
        stack: what stands before the keys.
        shift: what our gains are beyond the file's.
    """
    w, f, q, kv = c.hidden_size, c.ffn_width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    before, after = c.norm_at != "after", c.norm_at != "before"
    ffn_before = "pre_feedforward_layernorm" if after else "post_attention_layernorm"
    yield TensorPiece(f"{stack}embed_tokens.weight", "embed.weight", (c.vocab_size, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}layers.{i}"
        attention = {f"{h}.self_attn.q_proj": q, f"{h}.self_attn.k_proj": kv, f"{h}.self_attn.v_proj": kv}
        if before:
            yield from norm(f"{h}.input_layernorm", f"{block}.attention_norm", w, shift=shift)
        yield from fused(f"{block}.attention.qkv", attention, w, c.qkv_bias)
        yield from fused(f"{block}.attention.out", {f"{h}.self_attn.o_proj": w}, q, c.out_bias)
        if c.qk_norm != "none":
            wide = c.qk_norm == "all"
            for part, size in (("q", q), ("k", kv)):
                size = size if wide else c.head_dim
                yield from norm(f"{h}.self_attn.{part}_norm", f"{block}.attention.{part}_norm", size, shift=shift)
        if before:
            yield from norm(f"{h}.{ffn_before}", f"{block}.ffn_norm", w, shift=shift)
        yield from fused(f"{block}.ffn.up", {f"{h}.mlp.gate_proj": f, f"{h}.mlp.up_proj": f}, w, c.ffn_bias)
        yield from fused(f"{block}.ffn.down", {f"{h}.mlp.down_proj": w}, f, c.ffn_bias)
        if after:
            yield from norm(f"{h}.post_attention_layernorm", f"{block}.attention_out_norm", w, shift=shift)
            yield from norm(f"{h}.post_feedforward_layernorm", f"{block}.ffn_out_norm", w, shift=shift)
    yield from norm(f"{stack}norm", "norm", w, shift=shift)


def _read(s: ConfigReader) -> dict[str, Any]:
    bias = s.flag("attention_bias", False)
    return {**read_llama(s), "qkv_bias": bias, "out_bias": bias, "ffn_bias": s.flag("mlp_bias", False)}


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(c), "attention_bias": c.qkv_bias, "mlp_bias": c.ffn_bias}


LLAMA = Family("llama", "LlamaForCausalLM", _read, _write, llama_pieces)
