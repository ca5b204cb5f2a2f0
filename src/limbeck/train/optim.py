"""AdamW with its decay groups, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointError
from limbeck.train.distributed import full, like
from limbeck.train.settings import TrainSettings

__all__ = ["adamw", "decayed", "load_state", "state_tensors", "sweep"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_BLOCK = 1 << 20  # elements: with its gradient, moments and copy some 20 MiB, of which a shared cache holds enough


def decayed(model: nn.Module, decay_embeddings: bool = False) -> set[str]:
    """Return names of the trainable parameters that weight decay pulls on.

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
    """Return AdamW (Loshchilov & Hutter 2019) over ``trained``, in one kernel a group.

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


@torch.no_grad()
def sweep(
    optimizer: torch.optim.AdamW,
    trained: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    copies: Mapping[str, Tensor],
    divisor: Tensor,
) -> None:
    """Do what ``optimizer.step()`` does on a CPU, in one walk through memory.

    A block of a tensor at a time is cast, clipped, stepped and rounded into the model's copy while it is in cache.

    Args:
        optimizer: of ``adamw``; its state is made and kept as torch makes and keeps it.
        trained: the fp32 masters, by name; contiguous, as their copies are.
        gradients: theirs, in any floating dtype; a tensor without one is not stepped.
        copies: where each master is rounded to.
        divisor: () float32 that gradients are divided by.
    """
    named = {p: name for name, p in trained.items()}
    buffer = torch.empty(_BLOCK)
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = named[p]
            if name not in gradients:
                continue
            state = optimizer.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(p) for _ in range(2))
            state["step"] += 1
            whole = (p, gradients[name].contiguous(), state["exp_avg"], state["exp_avg_sq"], copies[name])
            for blocks in zip(*(x.view(-1).split(_BLOCK) for x in whole), strict=True):
                master, gradient, mean, square, copy = blocks
                wide = buffer[: master.numel()].copy_(gradient)
                torch._fused_adamw_(
                    [master], [wide], [mean], [square], [], [state["step"]], lr=float(group["lr"]),
                    beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                    eps=group["eps"], amsgrad=False, maximize=False, grad_scale=divisor,
                )  # fmt: skip
                copy.copy_(master)


def state_tensors(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's state as ``moment/parameter`` -> whole tensor; empty before the first step."""
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
