"""How near a model that was written is to its source: logits, and everything that is not a number."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.errors import RunError
from limbeck.formats.load import Bundle
from limbeck.measure.equivalence import compare_settings
from limbeck.measure.sides import BundleSide
from limbeck.model.decoder import Decoder

__all__ = ["Agreement", "agreement", "logits", "probe", "settings_lost"]

Agreement = dict[str, float]


def probe(model: Decoder, seed: int) -> Batch:
    """Return (4, T) random tokens, T at most 64 and at most the model's context."""
    c = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(c.vocab_size, (4, min(64, c.context)), generator=generator)
    return Batch.of_ids(ids).to(model.device)


@torch.no_grad()
def logits(model: Decoder, batch: Batch) -> Tensor:
    """Return (B, T, V) logits, in the model's own dtype."""
    out: Tensor = model(batch)
    return out


def agreement(before: Tensor, after: Tensor) -> Agreement:
    """Return how near two sets of logits (B, T, V) are.

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


def settings_lost(source: Bundle, written: Bundle, where: str) -> list[str]:
    """Compare tokens, chat template, stop tokens and settings with the source's.

    Args:
        source: what was exported.
        written: the same, loaded back.
        where: the file or folder that was written.

    Returns:
        What the layout could not keep, a sentence each.

    Raises:
        RunError: what was written encodes texts otherwise, or describes another decoder.
    """
    found = compare_settings(BundleSide(source, "the source"), BundleSide(written, where))
    for finding in found:
        if finding.kind in ("tokenizer", "begin", "template", "field"):
            raise RunError(f"{where} is not the source ({finding.message}): do not use it, and report this")
    return [finding.message for finding in found]
