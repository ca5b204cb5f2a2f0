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

__all__ = ["class_logits", "classes_of", "last_column", "mean_pool", "with_classes"]


def mean_pool(hidden: Tensor, batch: Batch) -> Tensor:
    """Return one vector a document, the mean of its final hidden states: (B, T, C) -> (B, C), padding left out."""
    real = batch.real
    share = real.to(hidden.dtype) / real.sum(dim=1, keepdim=True).clamp(min=1).to(hidden.dtype)
    return torch.einsum("btd,bt->bd", hidden, share)


def last_column(batch: Batch) -> Tensor:
    """Return (B,) column of each row's last token, padding on either side left out."""
    column = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return torch.where(batch.real, column, -1).amax(dim=1).clamp(min=0)


def class_logits(model: nn.Module, batch: Batch, how: Literal["last", "mean"]) -> Tensor:
    """Return logits (B, C) of the classes of each document, computed within the model's forward.

    Args:
        model: a decoder with a head of classes, or what wraps one for many devices.
        batch: (B, T) tokens, one document a row.
        how: read ``last``: the last token, which alone has seen them all (Radford et al. 2018); ``mean``: all of them.
    """
    if how == "last":
        at_last: Tensor = model(batch, at=last_column(batch))
        return at_last[:, 0]

    def read(hidden: Tensor, head: nn.Module) -> Tensor:
        logits: Tensor = head(mean_pool(hidden, batch))
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
    head = Linear(model.config.hidden_size, {"head": len(classes.labels)}, bias=True)
    nn.init.normal_(head.weight, 0.0, 0.02)
    nn.init.zeros_(head.bias)
    model.head = head.to(device=model.device, dtype=model.dtype)
    model.config = model.config.model_copy(update={"classes": classes, "tied": False})
    return model


def classes_of(model: Decoder) -> Classes:
    """Return the classes of the model's classification head.

    Raises:
        ConfigError: its head tells the next token.
    """
    if model.config.classes is None:
        raise ConfigError("the model's head tells the next token, not a class: fine-tune it on the task first")
    return model.config.classes


def _named(classes: Classes) -> str:
    return f"the classes {', '.join(classes.labels)} ({classes.pool} pool)"
