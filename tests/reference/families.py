"""Small decoders of both families in float64, every bias and norm random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.data.batch import IGNORE, Batch
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "positions": "rope", "norm": "rms", "activation": "silu", "gated": True, "kv_heads": 2,
        "qkv_bias": False, "out_bias": False, "ffn_bias": False,
    },
}  # fmt: skip


def family(name: str, **over: Any) -> Decoder:
    """Two layers, 16 wide, 300 ids, 64 positions."""
    shape = {"vocab_size": 300, "context": 64, "layers": 2, "hidden_size": 16, "heads": 4}
    model = Decoder(DecoderConfig(**{**shape, **FAMILIES[name], **over})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def nll(logits: Tensor, batch: Batch) -> Tensor:
    """(B, T) nats of each prediction, 0 where nothing is learned."""
    labels = batch.next_token_labels()
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels == IGNORE, 0.0, -chosen)


def gradients(model: Decoder, batches: list[Batch]) -> dict[str, Tensor]:
    """Gradients of the summed NLL over ``batches``, by parameter."""
    model.zero_grad()
    for batch in batches:
        nll(model(batch), batch).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
