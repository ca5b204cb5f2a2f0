"""Hugging Face's config.json against ``DecoderConfig``: GPT-2, Llama, Qwen2 and Mistral, both ways.

Settings that only steer training (dropout, initialisation) or speed (``use_cache``) never refuse a model; any that
would change what it computes and that the decoder cannot say does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.config import build
from limbeck.errors import ConfigError, ModelError
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig, Rope
from limbeck.model.patterns import AnyPattern, Causal, Sliding

__all__ = ["FAMILIES", "config_from", "config_to", "family_of"]

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
"""Values of ``model_type`` that are read and written; SmolLM2 and TinyLlama say llama, Qwen2.5 says qwen2."""

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_LAYERS, _WIDTH, _VOCABULARY = 10_000, 2**20, 2**24  # far above any model, far below what would overflow
_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def config_from(values: Mapping[str, Any], where: str) -> tuple[str, DecoderConfig]:
    """Read a config.json's ``values``.

    Args:
        values: the JSON object.
        where: the file's name, for messages.

    Returns:
        The family (its ``model_type``) and the decoder it describes.

    Raises:
        ModelError: an unsupported family or setting, or a size that is missing or cannot be.
    """
    s = ConfigReader(values, where)
    family = s.text("model_type", "")
    if family not in FAMILIES:
        said = f"model_type '{family}'" if family else "no model_type"
        raise ModelError(f"{where} has {said}: supported are {', '.join(FAMILIES)} and limbeck's own")
    s.refuse("quantization_config", "weights quantized by other tools are not read; use the unquantized model")
    fields = _gpt2(s) if family == "gpt2" else _llama(s, family)
    try:
        return family, build(DecoderConfig, fields, where)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def _activation(s: ConfigReader, key: str, default: str) -> str:
    name = s.text(key, default)
    if name not in _ACTIVATIONS:
        raise ModelError(f"{s.where} has {key} '{name}': supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gpt2(s: ConfigReader) -> dict[str, Any]:
    s.expect("scale_attn_weights", True)
    s.expect("scale_attn_by_inverse_layer_idx", False)
    s.expect("add_cross_attention", False)
    s.expect("is_encoder_decoder", False)
    width = s.size("n_embd", most=_WIDTH)
    return {
        "vocab_size": s.size("vocab_size", most=_VOCABULARY),
        "context": s.size("n_positions", s.size("n_ctx", 0)) or s.size("n_positions"),
        "layers": s.size("n_layer", most=_LAYERS),
        "hidden_size": width,
        "heads": s.size("n_head"),
        "ffn_width": s.size("n_inner", 0) or 4 * width,
        "norm_eps": s.number("layer_norm_epsilon", 1e-5),
        "activation": _activation(s, "activation_function", "gelu_new"),
        "tied": s.flag("tie_word_embeddings", True),
        # The decoder has one rate; where a file has three, the one of the residual branches stands for them.
        "dropout": s.number("resid_pdrop", 0.1),
    }


def _llama(s: ConfigReader, family: str) -> dict[str, Any]:
    s.expect("is_encoder_decoder", False)
    heads, width = s.size("num_attention_heads"), s.size("hidden_size", most=_WIDTH)
    qkv, out, ffn = family == "qwen2", False, False
    if family == "llama":
        qkv = out = s.flag("attention_bias", False)
        ffn = s.flag("mlp_bias", False)
    layers = s.size("num_hidden_layers", most=_LAYERS)
    return {
        "vocab_size": s.size("vocab_size", most=_VOCABULARY),
        "context": s.size("max_position_embeddings"),
        "layers": layers,
        "hidden_size": width,
        "heads": heads,
        "kv_heads": s.size("num_key_value_heads", 0) or heads,
        "head_dim": s.size("head_dim", 0),
        "ffn_width": s.size("intermediate_size"),
        "positions": "rope",
        "rope": _rope(s),
        "norm": "rms",
        "norm_eps": s.number("rms_norm_eps", 1e-6),
        "activation": _activation(s, "hidden_act", "silu"),
        "gated": True,
        "qkv_bias": qkv,
        "out_bias": out,
        "ffn_bias": ffn,
        "tied": s.flag("tie_word_embeddings", False),
        "dropout": s.number("attention_dropout", 0.0),
        "pattern": _pattern(s, family, layers),
    }


def _rope(s: ConfigReader) -> dict[str, Any]:
    """Read the rotary settings in the spelling before transformers 5, in its own, or in both where they agree."""
    old, new = s.inner("rope_scaling"), s.inner("rope_parameters")
    for key in (old.values.keys() & new.values.keys()) - {"rope_theta"}:
        if old.values[key] != new.values[key]:
            raise ModelError(f"{s.where} gives two values of {key}, in rope_scaling and in rope_parameters")
    theta = {x.number("rope_theta") for x in (s, old, new) if x.values.get("rope_theta") is not None}
    if len(theta) > 1:
        raise ModelError(f"{s.where} gives several values of rope_theta: {sorted(theta)}")
    said = ConfigReader({**old.values, **new.values}, new.where if new.values else old.where)
    for place in (s, said):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(f"{place.where} has a partial_rotary_factor: only whole heads are rotated here")
    kind = said.text("rope_type", said.text("type", "default"))
    if kind not in ("default", "llama3"):
        raise ModelError(f"{said.where} has rope_type '{kind}': supported are default and llama3")
    scaling = None
    if kind == "llama3":
        scaling = {name: said.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        scaling["original_context"] = said.size("original_max_position_embeddings", s.size("max_position_embeddings"))
    return {"theta": theta.pop() if theta else 10000.0, "scaling": scaling}


def _pattern(s: ConfigReader, family: str, layers: int) -> AnyPattern | tuple[AnyPattern, ...]:
    """Sliding windows as Mistral (every layer) and Qwen2 (the upper layers, or ``layer_types``) have them."""
    if family == "mistral":
        window = s.size("sliding_window", 4096, null=0)
        return Sliding(window=window) if window else Causal()
    if family == "llama" or not s.flag("use_sliding_window", False):
        return Causal()
    window = s.size("sliding_window", 4096, null=0)
    if not window:
        return Causal()
    first = s.size("max_window_layers", 28, least=0)
    rolls, full = "sliding_attention", "full_attention"
    kinds = s.values.get("layer_types") or [rolls if i >= first else full for i in range(layers)]
    known: dict[object, AnyPattern] = {rolls: Sliding(window=window), full: Causal()}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(isinstance(k, str) and k in known for k in kinds):
        raise ModelError(f"{s.where} has layer_types that are not one of {', '.join(map(str, known))} for each layer")
    patterns = tuple(known[k] for k in kinds)
    return patterns[0] if len(set(patterns)) == 1 else patterns


def family_of(config: DecoderConfig) -> tuple[str | None, str]:
    """Which family says exactly ``config``?

    Returns:
        The family and an empty string, or None and what no family can say.
    """
    if config.classes is not None:
        return None, "a head of classes"
    patterns = {config.pattern_at(i) for i in range(config.layers)}
    if config.positions == "learned" and config.norm == "layer" and not config.gated:
        return _why(
            "gpt2",
            {
                "fewer key/value than query heads": config.kv_heads != config.heads,
                "a head width other than width / heads": config.heads * config.head_dim != config.hidden_size,
                "layers without biases": not (config.qkv_bias and config.out_bias and config.ffn_bias),
                "attention patterns": patterns != {Causal()},
            },
        )
    if config.positions != "rope" or config.norm != "rms" or not config.gated:
        return None, f"{config.positions} positions with {config.norm} norm, gated={config.gated}"
    rolling = {p for p in patterns if isinstance(p, Sliding)}
    biases = (config.qkv_bias, config.out_bias, config.ffn_bias)
    unsaid = bool(patterns - rolling - {Causal()}) or any(p.sinks for p in rolling)
    odd = {"attention patterns": unsaid or len(rolling) > 1}
    if biases == (True, False, False):
        return _why("qwen2", odd)
    if rolling:
        return _why("mistral", {**odd, "sliding windows in some layers": len(patterns) > 1, "biases": any(biases)})
    return _why("llama", {**odd, "a bias on some of q, k, v and out": biases[0] != biases[1]})


def _why(family: str, odd: Mapping[str, bool]) -> tuple[str | None, str]:
    reasons = [reason for reason, holds in odd.items() if holds]
    return (None, f"{reasons[0]} in the {family} layout") if reasons else (family, "")


def config_to(family: str, config: DecoderConfig) -> dict[str, Any]:
    """Write ``config``, which ``family_of`` calls ``family``, as values of a config.json that transformers reads."""
    head = {"architectures": [_ARCHITECTURES[family]], "model_type": family, "vocab_size": config.vocab_size}
    tail = {"initializer_range": 0.02, "tie_word_embeddings": config.tied, "use_cache": True}
    if family == "gpt2":
        return {
            **head,
            "n_positions": config.context,
            "n_embd": config.hidden_size,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": None if config.ffn_width == 4 * config.hidden_size else config.ffn_width,
            "activation_function": _activation_name(config, "gelu_new"),
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
            **tail,
        }
    return {
        **head,
        "max_position_embeddings": config.context,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": _activation_name(config, "gelu_pytorch_tanh"),
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout,
        **_rope_to(config.rope),
        **_extras(family, config),
        **tail,
    }


def _activation_name(config: DecoderConfig, tanh: str) -> str:
    return tanh if config.activation == "gelu_tanh" else config.activation


def _rope_to(rope: Rope) -> dict[str, Any]:
    """Both spellings, so that every version of transformers and llama.cpp's converter finds its own."""
    if rope.scaling is None:
        return {"rope_theta": rope.theta, "rope_parameters": {"rope_theta": rope.theta, "rope_type": "default"}}
    scaling = {
        "rope_type": "llama3",
        "factor": rope.scaling.factor,
        "low_freq_factor": rope.scaling.low_freq_factor,
        "high_freq_factor": rope.scaling.high_freq_factor,
        "original_max_position_embeddings": rope.scaling.original_context,
    }
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": rope.theta, **scaling},
    }


def _extras(family: str, config: DecoderConfig) -> dict[str, Any]:
    patterns = [config.pattern_at(i) for i in range(config.layers)]
    window = next((p.window for p in patterns if isinstance(p, Sliding)), None)
    if family == "mistral":
        return {"sliding_window": window}
    if family == "qwen2":
        kinds = ["sliding_attention" if isinstance(p, Sliding) else "full_attention" for p in patterns]
        return {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": kinds}
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
