"""Training steps on both sides: Limbeck's own loop, and the loop that users of transformers write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["OURS", "THEIRS", "Cycle", "OnStep", "plain_loop", "train_ours"]

OURS = ("limbeck.train.loop", "limbeck.formats.huggingface", "limbeck.objectives.next_token")
THEIRS = ("torch", "transformers.models.gpt2.modeling_gpt2")

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0

OnStep = Callable[[float, Mapping[str, float]], None]
"""Called after a step with its useful tokens and its losses: a ``Turn``, or what hands on to one."""


class Cycle:
    """A stream that goes round a few batches."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.per_epoch = batches, len(batches)

    def at(self, index: int) -> Any:
        """Micro-batch ``index``."""
        return self.batches[index % len(self.batches)]


def train_ours(
    turn: OnStep, model: nn.Module, objective: Any, batches: Sequence[Any], rate: float = RATE, precision: str = "bf16"
) -> None:
    """Run Limbeck's loop, as its recipes do."""
    from limbeck.train.loop import train
    from limbeck.train.settings import TrainSettings
    from limbeck.train.stream import tokens

    settings = TrainSettings(
        steps=10**6, precision=precision, learning_rate=rate, schedule="constant", weight_decay=DECAY,
        decay_embeddings=True, clip_norm=CLIP, monitor="",
    )  # fmt: skip
    sizes = [tokens(b)[0] for b in batches]

    def on_step(step: int, losses: Any) -> None:
        named = {name.removeprefix("train/"): value for name, value in losses.items()}
        turn(sizes[(step - 1) % len(sizes)], named)

    train(model, objective, Cycle(batches), settings, progress=False, on_step=on_step)


def plain_loop(
    turn: OnStep,
    model: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    tokens: Sequence[int],
    rate: float = RATE,
) -> None:
    """Take bf16 autocast steps with torch's fused AdamW.

    Args:
        turn: called after each.
        model: its trainable parameters are stepped.
        loss: step number -> the loss to go back from, and what to report.
        tokens: useful tokens of the batches, which come round.
        rate: learning rate.
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    step = 0
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, told = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told = {name: float(x.detach()) for name, x in told.items()}
        del value
        turn(tokens[step % len(tokens)], told)
        step += 1
