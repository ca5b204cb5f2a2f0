"""Small saved models and runs for the recipes' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.formats.load import save_bundle
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from tests.reference.small_tokenizer import byte_level

__all__ = ["decoder", "saved"]

MODERN: dict[str, Any] = {
    "positions": "rope", "norm": "rms", "activation": "silu", "gated": True,
    "qkv_bias": False, "out_bias": False, "ffn_bias": False, "kv_heads": 2,
}  # fmt: skip


def decoder(**over: Any) -> Decoder:
    """A decoder of two layers, 16 wide, with random biases and norms."""
    config = DecoderConfig(**{"vocab_size": 288, "context": 32, "layers": 2, "hidden_size": 16, "heads": 4, **over})
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def saved(folder: Path, dtype: torch.dtype = torch.float32, **over: Any) -> Path:
    """Write a small model and its tokenizer."""
    save_bundle(decoder(**over).to(dtype), byte_level(), folder, generation={"max_new_tokens": 7})
    return folder
