"""Hugging Face's tensor names against ours: which key fills which rows of which parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from limbeck.formats.pieces import TensorPiece
from limbeck.model.config import DecoderConfig

__all__ = ["hub_prefix", "ignored", "pieces"]

_PREFIX = {"gpt2": "transformer.", "llama": "model.", "mistral": "model.", "qwen2": "model."}
_FIRST = {"gpt2": "wte.weight", "llama": "embed_tokens.weight", "mistral": "embed_tokens.weight"}

_IGNORED = {
    # The causal mask that GPT-2's checkpoints on the Hub carry as a buffer; it is no weight.
    "gpt2": re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"),
    # Rotary frequencies that early Llama conversions saved; they follow from the config.
    "llama": re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
}


def ignored(family: str, key: str) -> bool:
    """Is ``key`` on the named list of tensors that are no weights?"""
    return _IGNORED["gpt2" if family == "gpt2" else "llama"].fullmatch(key) is not None


def hub_prefix(family: str, keys: Mapping[str, object]) -> str:
    """How a file spells the stack: with ``transformer.`` or ``model.`` before it, or bare as the Hub's gpt2 does."""
    return "" if _FIRST.get(family, _FIRST["llama"]) in keys else _PREFIX[family]


def pieces(family: str, config: DecoderConfig, prefix: str | None = None) -> Iterator[TensorPiece]:
    """Every tensor of the family's file, in order, the head only where it is untied.

    Args:
        family: a value of ``families.FAMILIES``.
        config: the decoder.
        prefix: what stands before the stack's keys; None: what ``save_pretrained`` writes.

    Yields:
        One ``TensorPiece`` a tensor; pieces of one parameter follow one another.
    """
    stack = _PREFIX[family] if prefix is None else prefix
    yield from _gpt2(config, stack) if family == "gpt2" else _llama(config, stack)
    if not config.tied:
        yield TensorPiece("lm_head.weight", "head.weight", (config.vocab_size, config.hidden_size))


def _gpt2(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f = c.hidden_size, c.ffn_width
    yield TensorPiece(f"{stack}wte.weight", "embed.weight", (c.vocab_size, w))
    yield TensorPiece(f"{stack}wpe.weight", "positions.weight", (c.context, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}h.{i}"
        yield from _norm(f"{h}.ln_1", f"{block}.attention_norm", w)
        yield from _conv1d(f"{h}.attn.c_attn", f"{block}.attention.qkv", w, 3 * w)
        yield from _conv1d(f"{h}.attn.c_proj", f"{block}.attention.out", w, w)
        yield from _norm(f"{h}.ln_2", f"{block}.ffn_norm", w)
        yield from _conv1d(f"{h}.mlp.c_fc", f"{block}.ffn.up", w, f)
        yield from _conv1d(f"{h}.mlp.c_proj", f"{block}.ffn.down", f, w)
    yield from _norm(f"{stack}ln_f", "norm", w)


def _norm(key: str, name: str, width: int) -> Iterator[TensorPiece]:
    yield TensorPiece(f"{key}.weight", f"{name}.weight", (width,))
    yield TensorPiece(f"{key}.bias", f"{name}.bias", (width,))


def _conv1d(key: str, name: str, inputs: int, outputs: int) -> Iterator[TensorPiece]:
    yield TensorPiece(f"{key}.weight", f"{name}.weight", (inputs, outputs), transposed=True)
    yield TensorPiece(f"{key}.bias", f"{name}.bias", (outputs,))


def _llama(c: DecoderConfig, stack: str) -> Iterator[TensorPiece]:
    w, f, q, kv = c.hidden_size, c.ffn_width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield TensorPiece(f"{stack}embed_tokens.weight", "embed.weight", (c.vocab_size, w))
    for i in range(c.layers):
        block, h = f"blocks.{i}", f"{stack}layers.{i}"
        attention = {f"{h}.self_attn.q_proj": q, f"{h}.self_attn.k_proj": kv, f"{h}.self_attn.v_proj": kv}
        yield TensorPiece(f"{h}.input_layernorm.weight", f"{block}.attention_norm.weight", (w,))
        yield from _fused(f"{block}.attention.qkv", attention, w, c.qkv_bias)
        yield from _fused(f"{block}.attention.out", {f"{h}.self_attn.o_proj": w}, q, c.out_bias)
        yield TensorPiece(f"{h}.post_attention_layernorm.weight", f"{block}.ffn_norm.weight", (w,))
        yield from _fused(f"{block}.ffn.up", {f"{h}.mlp.gate_proj": f, f"{h}.mlp.up_proj": f}, w, c.ffn_bias)
        yield from _fused(f"{block}.ffn.down", {f"{h}.mlp.down_proj": w}, f, c.ffn_bias)
    yield TensorPiece(f"{stack}norm.weight", "norm.weight", (w,))


def _fused(name: str, parts: Mapping[str, int], inputs: int, bias: bool) -> Iterator[TensorPiece]:
    """Separate matrices of the file, in the order of the rows of our one."""
    for leaf in ("weight", "bias") if bias else ("weight",):
        at = 0
        for key, outputs in parts.items():
            shape = (outputs, inputs) if leaf == "weight" else (outputs,)
            yield TensorPiece(f"{key}.{leaf}", f"{name}.{leaf}", shape, rows=slice(at, at + outputs))
            at += outputs
