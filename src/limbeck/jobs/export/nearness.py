"""How near the logits of a model that was written are to those of its source."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.model.decoder import Decoder

__all__ = ["Agreement", "agreement", "logits", "probe"]

Agreement = dict[str, float]


def probe(model: Decoder, seed: int) -> Batch:
    """(4, T) random tokens, T at most 64 and at most the model's context."""
    c = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(c.vocab_size, (4, min(64, c.context)), generator=generator)
    return Batch.of_ids(ids).to(model.device)


@torch.no_grad()
def logits(model: Decoder, batch: Batch) -> Tensor:
    """(B, T, V) logits, in the model's own dtype."""
    out: Tensor = model(batch)
    return out


def agreement(before: Tensor, after: Tensor) -> Agreement:
    """How near two sets of logits (B, T, V) are.

    Returns:
        The largest absolute difference, the same relative to the largest logit, the share of positions with the same
        top token, and KL(before || after) in nats, the mean over positions.
    """
    a, b = before.double(), after.double()
    difference = float((a - b).abs().max())
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "max_difference": difference,
        "relative_difference": difference / float(a.abs().max().clamp_min(1e-30)),
        "top_agreement": float((a.argmax(-1) == b.argmax(-1)).double().mean()),
        "kl_nats": float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0)),
    }
