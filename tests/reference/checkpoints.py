"""Tiny checkpoints as transformers writes them, every bias and norm random, and the spellings found on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.reference.small_tokenizer import byte_level

__all__ = ["FAMILIES", "VOCAB", "edit_config", "edit_weights", "hub_spelling", "old_rope_spelling", "randomise", "save"]

VOCAB = 280


def _gpt2(**over):
    from transformers import GPT2Config, GPT2LMHeadModel

    values = {"vocab_size": VOCAB, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**{**values, "bos_token_id": 0, "eos_token_id": 0, **over}))


def _llama_values(**over):
    values = {
        "vocab_size": VOCAB, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return {**values, **over}


def _llama(**over):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_llama_values(**over)))


def _qwen2(**over):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_llama_values(**over)))


def _mistral(**over):
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_llama_values(**over)))


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

FAMILIES: dict[str, Callable] = {
    "gpt2": _gpt2,
    "gpt2-untied-inner": lambda: _gpt2(tie_word_embeddings=False, n_inner=52, activation_function="gelu"),
    "llama": _llama,
    "llama-tied-wide-heads": lambda: _llama(tie_word_embeddings=True, head_dim=12, num_key_value_heads=4),
    "llama-biases": lambda: _llama(attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama3-scaled": lambda: _llama(rope_parameters=dict(LLAMA3), tie_word_embeddings=True),
    "qwen2": lambda: _qwen2(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen2-upper-window": lambda: _qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "mistral": lambda: _mistral(sliding_window=None),
    "mistral-window": lambda: _mistral(sliding_window=5),
}
"""Name -> a fresh transformers model with default initialisation."""


@torch.no_grad()
def randomise(model, seed: int = 0):
    """Every parameter random and large: on default initialisation swapped norms and biases go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = p.dim() == 1 and name.endswith("weight")
        p.copy_(1 + 0.3 * noise if gain else (0.3 if p.dim() == 1 else 0.15) * noise)
    return model.eval()


def save(name: str, folder: Path, *, dtype=torch.float32, seed: int = 0, **options):
    """Write the named family with a tokenizer to ``folder``; returns the transformers model, in evaluation mode."""
    model = randomise(FAMILIES[name](), seed).to(dtype)
    model.save_pretrained(folder, **options)
    byte_level(VOCAB).save(folder)
    return model


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite ``model.safetensors`` with ``change`` of its tensors."""
    file = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})


def edit_config(folder: Path, **values) -> None:
    """Change config.json; a value of ``...`` removes its key."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def hub_spelling(folder: Path, *, head: bool = False) -> None:
    """Respell a GPT-2 folder as the Hub's gpt2: bare keys, causal masks as buffers; with ``head`` the tied head too."""

    def respell(tensors):
        bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        for i in range(2):
            bare[f"h.{i}.attn.bias"] = torch.tril(torch.ones(48, 48)).view(1, 1, 48, 48)
            bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        if head:
            bare["lm_head.weight"] = bare["wte.weight"].clone()
        return bare

    edit_weights(folder, respell)


def old_rope_spelling(folder: Path) -> None:
    """Respell rotary settings as before transformers 5: ``rope_theta`` at the top, ``rope_scaling`` beside it."""
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    edit_config(folder, rope_parameters=..., rope_theta=theta, rope_scaling=rope)
