"""peft beside us: an adapter trained by it on the transformers twin of one of our decoders, and ours opened by it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from limbeck.model.decoder import Decoder
from tests.reference.techniques import plain_batch
from tests.reference.twins import hf_twin

__all__ = ["opened_by_peft", "their_logits", "trained_by_peft"]


@torch.no_grad()
def their_logits(model) -> torch.Tensor:
    """(B, T, V) of whole rows: padding on the right changes no earlier logit of a causal model."""
    return model.eval()(input_ids=plain_batch().ids).logits


def _quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of fan_in_fan_out and of what transformers deprecates
        return make()


def trained_by_peft(model: Decoder, folder: Path, steps: int = 4, **settings):
    """Train with peft for a few steps, save, and return peft's model."""
    from peft import LoraConfig, get_peft_model

    twin = hf_twin(model)
    adapted = _quietly(lambda: get_peft_model(twin, LoraConfig(task_type="CAUSAL_LM", **settings)))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-2)
    ids = plain_batch(length=12, seed=8).ids
    adapted.train()
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    _quietly(lambda: adapted.save_pretrained(folder))
    return adapted.eval()


def opened_by_peft(model: Decoder, folder: Path):
    """The transformers twin of the plain ``model`` with the adapter of ``folder``."""
    from peft import PeftModel

    return _quietly(lambda: PeftModel.from_pretrained(hf_twin(model), folder))
