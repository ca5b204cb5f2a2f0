"""AdamW with its decay groups, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointError
from limbeck.train.distributed import full, like
from limbeck.train.settings import TrainSettings

__all__ = ["adamw", "decayed", "load_state", "state_tensors"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def decayed(model: nn.Module, decay_embeddings: bool = False) -> set[str]:
    """Names of the trainable parameters that weight decay pulls on.

    The rule: tensors of one dimension (biases, gains of norms) never; embedding tables (tokens, positions, and with
    them a tied head) only with ``decay_embeddings``; every other matrix always.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim >= 2 and (decay_embeddings or id(p) not in tables)
    }


def adamw(trained: Mapping[str, nn.Parameter], decay: set[str], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over ``trained``, in one kernel a group.

    Args:
        trained: the tensors to step, by name; a tied weight is there once.
        decay: names that weight decay pulls on.
        settings: rates.
    """
    with_decay = [p for name, p in trained.items() if name in decay]
    without = [p for name, p in trained.items() if name not in decay]
    groups = [
        {"params": params, "weight_decay": wd}
        for params, wd in ((with_decay, settings.weight_decay), (without, 0.0))
        if params
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained.values())
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=fused)


def state_tensors(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as ``moment/parameter`` -> whole tensor; empty before the first step."""
    return {
        f"{moment}/{name}": full(optimizer.state[p][moment])
        for name, p in trained.items()
        if p in optimizer.state
        for moment in _MOMENTS
    }


def load_state(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``state_tensors`` returned; parameters without a state there start afresh.

    Raises:
        CheckpointError: a moment has another shape than its parameter.
        KeyError: a moment is missing.
    """
    optimizer.state.clear()
    for name, p in trained.items():
        if f"step/{name}" in tensors:
            for moment in _MOMENTS[:2]:
                if tensors[f"{moment}/{name}"].shape != p.shape:
                    raise CheckpointError(f"key '{moment}/{name}' does not have the shape of its parameter")
            moments = {m: like(p, tensors[f"{m}/{name}"]) for m in _MOMENTS[:2]}
            step = tensors[f"step/{name}"].to(p.device, torch.float32, copy=True)
            optimizer.state[p] = {"step": step, **moments}
