"""What the tests of quantized models share."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.kernels.packed import dispatch
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder

__all__ = ["batches", "correlated", "decoder", "nll", "reference_logits"]


def decoder(seed: int = 0, dtype: torch.dtype = torch.float32, **over: object) -> Decoder:
    """Two layers, 36 wide, 53 words, tied: no size divides by 16 or 32."""
    torch.manual_seed(seed)
    config = DecoderConfig(**{"vocab_size": 53, "context": 32, "layers": 2, "hidden_size": 36, "heads": 2, **over})
    model = Decoder(config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model.to(dtype).eval()


def batches(count: int = 4, seed: int = 3) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [Batch.of_ids(torch.randint(0, 53, (4, 24), generator=g), [24, 20, 10, 24]) for _ in range(count)]


def correlated(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """(tokens, columns) float64 inputs of few directions and much variance in some, as layers really get."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns // 3, columns, generator=g, dtype=torch.float64)
    x = torch.randn(tokens, columns // 3, generator=g, dtype=torch.float64) @ basis
    return x + 0.1 * torch.randn(tokens, columns, generator=g, dtype=torch.float64)


@torch.no_grad()
def reference_logits(model: Decoder, batch: Batch | None = None) -> Tensor:
    with dispatch("reference"):
        return model.eval()(batches(1)[0] if batch is None else batch)


def nll(model: Decoder, batch: Batch) -> Tensor:
    """Mean NLL in nats, with its gradient."""
    return torch.nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.next_token_labels().flatten())
