"""What a GGUF file says of its model, as the values of the config.json of the family that it was made from.

So one reader (``families``) judges both. llama.cpp has no key for some settings that its architecture fixes; those are
added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from limbeck.errors import ModelError
from limbeck.formats.gguf_file import GgufFile
from limbeck.model.config import Llama3Scaling, Rope
from limbeck.model.positions import inverse_frequencies

__all__ = ["ARCHITECTURES", "ROPE_FACTORS", "values_of"]

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor that divides rotary frequencies, as Llama 3.1's files have it."""

_LLAMA3 = [(factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0)]  # of Llama 3.1 and 3.2
_SAME = 1e-4  # relative; files keep the factors in fp32


class _Metadata:
    """Entries of one architecture, each checked for its kind."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def get(self, key: str, kind: type, default: Any = None, *, needed: bool = False) -> Any:
        """Return the entry ``ARCHITECTURE.key``, or ``default``."""
        full = key if key.startswith("tokenizer.") else f"{self.architecture}.{key}"
        value = self.file.values.get(full, default)
        if value is None and needed:
            raise ModelError(f"{self.file.path} lacks the entry '{full}'")
        if value is None:
            return None
        if isinstance(value, np.ndarray) and len(value) and bool((value == value[0]).all()):
            value = value[0].item()  # one number a layer, all alike
        numbers = (int, float) if kind is float else (kind,)
        if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
            shown = "one number a layer" if isinstance(value, np.ndarray) else repr(value)[:40]
            raise ModelError(f"{self.file.path} has {full} = {shown}, where one {kind.__name__} is expected")
        return value


def values_of(file: GgufFile) -> dict[str, Any]:
    """Return values of a config.json that describe the model of ``file``.

    Raises:
        ModelError: an architecture or setting that is not supported, or an entry that is missing.
    """
    architecture = file.values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{file.path} has the architecture {architecture!r}: supported are {known}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path} holds no token_embd.weight: it is no language model (is it an adapter?)")
    splits = file.values.get("split.count", 0)
    if splits not in (0, 1):
        raise ModelError(f"{file.path} is one of {splits} parts: join them by llama.cpp's gguf-split first")
    meta = _Metadata(file, architecture)
    values = ARCHITECTURES[architecture](meta)
    return {
        **values,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _gpt2(m: _Metadata) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_positions": m.get("context_length", int, needed=True),
        "n_embd": m.get("embedding_length", int, needed=True),
        "n_layer": m.get("block_count", int, needed=True),
        "n_head": m.get("attention.head_count", int, needed=True),
        "n_inner": m.get("feed_forward_length", int),
        "layer_norm_epsilon": _short(m.get("attention.layer_norm_epsilon", float, 1e-5)),
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
    }


def _stack(m: _Metadata, model_type: str, epsilon: str = "attention.layer_norm_rms_epsilon") -> dict[str, Any]:
    """Sizes under the names that Llama and its kin give them."""
    heads = m.get("attention.head_count", int, needed=True)
    values = {
        "model_type": model_type,
        "max_position_embeddings": m.get("context_length", int, needed=True),
        "hidden_size": m.get("embedding_length", int, needed=True),
        "num_hidden_layers": m.get("block_count", int, needed=True),
        "num_attention_heads": heads,
        "num_key_value_heads": m.get("attention.head_count_kv", int, heads),
        "head_dim": m.get("attention.key_length", int),
        "intermediate_size": m.get("feed_forward_length", int, needed=True),
        "rms_norm_eps": _short(m.get(epsilon, float, needed=True)),
    }
    width = m.get("attention.value_length", int)
    if width is not None and width != (values["head_dim"] or values["hidden_size"] // heads):
        raise ModelError(f"{m.file.path} has value heads of another width than key heads, which is not supported")
    return values


def _llama(m: _Metadata) -> dict[str, Any]:
    if m.get("expert_count", int, 0):
        raise ModelError(f"{m.file.path} is a mixture of experts, which is not supported")
    tensors = m.file.tensors
    values = _stack(m, "llama")
    values |= {"attention_bias": "blk.0.attn_output.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    if "blk.0.attn_q.bias" in tensors and not values["attention_bias"]:
        values |= {"model_type": "qwen2"}  # written so by Limbeck: llama.cpp's llama takes biases where it finds them
        del values["attention_bias"], values["mlp_bias"]
    return {**values, **_rope(m, values)}


def _qwen2(m: _Metadata) -> dict[str, Any]:
    values = _stack(m, "qwen2")
    return {**values, **_rope(m, values)}


def _rope(m: _Metadata, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, in the spelling of transformers 5."""
    theta = _short(m.get("rope.freq_base", float, 10000.0))
    width = values["head_dim"] or values["hidden_size"] // values["num_attention_heads"]
    rotated = m.get("rope.dimension_count", int, width)
    if rotated != width:
        raise ModelError(f"{m.file.path} rotates {rotated} of {width} columns a head, which its family never does")
    kind = m.get("rope.scaling.type", str, "none")
    if kind != "none":
        raise ModelError(f"{m.file.path} has rope.scaling.type '{kind}', which is not supported")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if ROPE_FACTORS in m.file.tensors:
        rope |= _factors(m.file, theta, width)
    return {"rope_parameters": rope}


def _factors(file: GgufFile, theta: float, width: int) -> dict[str, Any]:
    """Llama 3's settings from the factors that llama.cpp keeps instead."""
    found = torch.cat([torch.from_numpy(rows.copy()).double().flatten() for _, rows in file.numbers(ROPE_FACTORS)])
    plain = inverse_frequencies(Rope(theta=theta), width)
    own = file.values.get("limbeck.rope.llama3")
    settings = [tuple(own.tolist()), *_LLAMA3] if isinstance(own, np.ndarray) and len(own) == 4 else _LLAMA3
    for factor, low, high, context in settings:
        scaling = Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=int(context)
        )
        made = plain / inverse_frequencies(Rope(theta=theta, scaling=scaling), width)
        if made.shape == found.shape and bool(torch.isclose(made, found, rtol=_SAME, atol=0).all()):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(context),
            }
    raise ModelError(f"{file.path} divides rotary frequencies by factors that are not Llama 3's ({ROPE_FACTORS})")


def _short(value: float) -> float:
    """Return the shortest decimal that rounds to the same fp32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


ARCHITECTURES: Mapping[str, Callable[[_Metadata], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
}
"""Architecture -> reader of its entries."""
