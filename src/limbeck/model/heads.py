"""Heads of classes: what a classifier reads of a document, and putting such a head on a decoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import ConfigError
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from limbeck.model.linear import Linear

__all__ = ["class_logits", "classes_of", "pool", "with_classes"]


def pool(hidden: Tensor, batch: Batch, how: Literal["last", "mean"]) -> Tensor:
    """One vector a document: (B, T, width) -> (B, width), padding on either side left out.

    Args:
        hidden: final hidden states.
        batch: the tokens they belong to, one document a row.
        how: ``last``: of the last token, which alone has seen them all (Radford et al. 2018); ``mean``: over all.
    """
    real = batch.real
    if how == "mean":
        share = real.to(hidden.dtype) / real.sum(dim=1, keepdim=True).clamp(min=1).to(hidden.dtype)
        return torch.einsum("btd,bt->bd", hidden, share)
    column = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real, column, -1).amax(dim=1).clamp(min=0)
    return hidden[torch.arange(real.shape[0], device=real.device), last]


def class_logits(model: nn.Module, batch: Batch, how: Literal["last", "mean"]) -> Tensor:
    """Logits (B, C) of the classes of each document, computed within the model's forward.

    Args:
        model: a decoder with a head of classes, or what wraps one for many devices.
        batch: (B, T) tokens, one document a row.
        how: see ``pool``.
    """

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        logits: Tensor = head(pool(hidden, batch, how))
        return logits

    out: Tensor = model(batch, read=read)
    return out


def with_classes(model: Decoder, classes: Classes) -> Decoder:
    """Give ``model`` a new head of ``classes``, in place; the head of tokens goes, a tied embedding stays.

    A model that has a head of just these classes keeps it, so that fine-tuning can go on.

    Raises:
        ConfigError: it has a head of other classes.
    """
    if model.config.classes is not None:
        if model.config.classes != classes:
            ours, theirs = _named(classes), _named(model.config.classes)
            raise ConfigError(f"the model has a head for {theirs}, and {ours} are wanted: start from its base model")
        return model
    head = Linear(model.config.width, {"head": len(classes.labels)}, bias=True)
    nn.init.normal_(head.weight, 0.0, 0.02)
    nn.init.zeros_(head.bias)
    model.head = head.to(device=model.device, dtype=model.dtype)
    model.config = model.config.model_copy(update={"classes": classes, "tied": False})
    return model


def classes_of(model: Decoder) -> Classes:
    """The classes that the model's head tells.

    Raises:
        ConfigError: its head tells the next token.
    """
    if model.config.classes is None:
        raise ConfigError("the model's head tells the next token, not a class: fine-tune it on the task first")
    return model.config.classes


def _named(classes: Classes) -> str:
    return f"the classes {', '.join(classes.labels)} ({classes.pool} pool)"
