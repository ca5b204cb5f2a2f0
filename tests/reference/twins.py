"""Tiny random decoders and the transformers models of equal weights; every bias and gain is random."""

from __future__ import annotations

import torch

from limbeck.model.config import DecoderConfig, Rope
from limbeck.model.decoder import Decoder

__all__ = ["gpt2_config", "hf_twin", "llama_config", "random_decoder"]


def gpt2_config(vocab_size: int = 61, context: int = 64, **over) -> DecoderConfig:
    values = {"vocab_size": vocab_size, "context": context, "layers": 2, "hidden_size": 32, "heads": 4}
    return DecoderConfig(**(values | over))


def llama_config(vocab_size: int = 61, context: int = 64, **over) -> DecoderConfig:
    values = {
        "vocab_size": vocab_size, "context": context, "layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2,
        "ffn_width": 48, "positions": "rope", "rope": Rope(), "norm": "rms", "activation": "silu", "gated": True,
        "qkv_bias": False, "out_bias": False, "ffn_bias": False, "tied": False,
    }  # fmt: skip
    return DecoderConfig(**(values | over))


def random_decoder(config: DecoderConfig, seed: int = 0, scale: float = 0.3, dtype=torch.float32) -> Decoder:
    """Weights large enough that distributions are far from uniform."""
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator) * scale
            p.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.to(dtype).eval()


def hf_twin(model: Decoder, eos_id: int | None = None):
    """The transformers model with ``model``'s weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    c = model.config
    if c.positions == "learned":
        config = GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.context, n_embd=c.hidden_size, n_layer=c.layers, n_head=c.heads,
            bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=eos_id, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            tie_word_embeddings=c.tied,
        )  # fmt: skip
        twin, state = GPT2LMHeadModel(config), _gpt2_state(model)
    else:
        config = LlamaConfig(
            vocab_size=c.vocab_size, max_position_embeddings=c.context, hidden_size=c.hidden_size,
            num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            intermediate_size=c.ffn_width,
            rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied, bos_token_id=eos_id, eos_token_id=eos_id,
            pad_token_id=eos_id,
        )  # fmt: skip
        twin, state = LlamaForCausalLM(config), _llama_state(model)
    twin.load_state_dict(state, strict=True)
    return twin.to(model.dtype).eval()


def _gpt2_state(model: Decoder) -> dict[str, torch.Tensor]:
    s = model.state_dict()
    out = {"transformer.wte.weight": s["embed.weight"], "transformer.wpe.weight": s["positions.weight"]}
    names = {"attention_norm": "ln_1", "ffn_norm": "ln_2", "attention.qkv": "attn.c_attn",
             "attention.out": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}  # fmt: skip
    for i in range(model.config.layers):
        for ours, theirs in names.items():
            weight = s[f"blocks.{i}.{ours}.weight"]
            out[f"transformer.h.{i}.{theirs}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
            out[f"transformer.h.{i}.{theirs}.bias"] = s[f"blocks.{i}.{ours}.bias"]
    out["transformer.ln_f.weight"], out["transformer.ln_f.bias"] = s["norm.weight"], s["norm.bias"]
    out["lm_head.weight"] = s["head.weight"]
    return out


def _llama_state(model: Decoder) -> dict[str, torch.Tensor]:
    s, c = model.state_dict(), model.config
    out = {"model.embed_tokens.weight": s["embed.weight"], "model.norm.weight": s["norm.weight"],
           "lm_head.weight": s["head.weight"]}  # fmt: skip
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for name, part in zip("qkv", s[ours + "attention.qkv.weight"].split([q, kv, kv]), strict=True):
            out[f"{theirs}self_attn.{name}_proj.weight"] = part
        out[theirs + "self_attn.o_proj.weight"] = s[ours + "attention.out.weight"]
        gate, up = s[ours + "ffn.up.weight"].chunk(2)
        out[theirs + "mlp.gate_proj.weight"], out[theirs + "mlp.up_proj.weight"] = gate, up
        out[theirs + "mlp.down_proj.weight"] = s[ours + "ffn.down.weight"]
        out[theirs + "input_layernorm.weight"] = s[ours + "attention_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = s[ours + "ffn_norm.weight"]
    return out
