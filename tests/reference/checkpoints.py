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


def _of(kind: str, config: str | None = None, **over):
    """The class ``kind`` of transformers on the shared small sizes; ``...`` leaves a key out."""
    import transformers

    values = {k: v for k, v in _llama_values(**over).items() if v is not ...}
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{config or kind}Config")(**values))


def _neox(**over):
    return _of("GPTNeoX", num_key_value_heads=..., rms_norm_eps=..., **over)


def _opt(**over):
    gone = dict.fromkeys(("intermediate_size", "num_key_value_heads", "rms_norm_eps"), ...)
    return _of("OPT", **gone, ffn_dim=48, dropout=0.0, **over)


def _gpt_neo(**over):
    small = {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 5}
    gone = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"), ...)
    return _of("GPTNeo", **{**gone, **small, **over})


def _rope(kind: str, **values):
    return _llama(rope_parameters={"rope_type": kind, "rope_theta": 500.0, **values}, max_position_embeddings=32)


def _gemma3(**over):
    return _of("Gemma3", "Gemma3Text", **GEMMA, **over)


GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5, "num_hidden_layers": 3}

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
    "qwen3": lambda: _of("Qwen3", head_dim=12),
    "qwen3-biases-window": lambda: _of(
        "Qwen3", head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "gemma3": lambda: _gemma3(
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True
    ),
    "gemma3-capped": lambda: _gemma3(
        final_logit_softcapping=3.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        },
    ),
    "gemma2": lambda: _of(
        "Gemma2", **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, tie_word_embeddings=True
    ),
    "gpt_neox": lambda: _neox(rotary_pct=0.5),
    "gpt_neox-serial": lambda: _neox(
        use_parallel_residual=False, rotary_pct=1.0, attention_bias=False, tie_word_embeddings=True
    ),
    "opt": _opt,
    "opt-no-biases": lambda: _opt(enable_bias=False, tie_word_embeddings=False),
    "olmo2": lambda: _of("Olmo2"),
    "gpt_neo": _gpt_neo,
    "rope-linear": lambda: _rope("linear", factor=4.0),
    "rope-dynamic": lambda: _rope("dynamic", factor=3.0),
    "rope-yarn": lambda: _rope("yarn", factor=4.0, original_max_position_embeddings=8),
    "rope-yarn-scales": lambda: _rope(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=8,
        beta_fast=4.0,
        beta_slow=0.5,
        mscale=0.9,
        mscale_all_dim=0.4,
        truncate=False,
    ),
    "rope-long": lambda: _rope(
        "longrope",
        original_max_position_embeddings=16,
        factor=2.0,
        short_factor=[1.0, 1.1, 1.3, 1.7],
        long_factor=[1.0, 2.0, 3.0, 5.0],
    ),
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
