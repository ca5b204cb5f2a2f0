"""The trainers of trl as users run them on a CPU, with a turn after every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.training import CLIP, DECAY, RATE, THEIRS, OnStep

if TYPE_CHECKING:
    from harness.shapes import Shape

__all__ = ["PACKAGES", "TRL", "arguments", "text_of", "tokenizer_of", "trl_loop"]

PACKAGES = ("trl", "peft")
TRL = (*THEIRS, "datasets", "trl.trainer.dpo_trainer", "trl.trainer.sft_trainer")


def tokenizer_of(shape: Shape) -> Any:
    """One word an id, ``w0`` to ``w<n-2>``; the last id ends a text and pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(shape.vocabulary - 1)} | {"</s>": shape.vocabulary - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def text_of(ids: Sequence[int], shape: Shape) -> str:
    """Text that ``tokenizer_of`` reads as ``ids``; each word with the space before it, so that texts can be joined."""
    return "".join(" </s>" if i == shape.vocabulary - 1 else f" w{i}" for i in ids)


def arguments(kind: type[Any], batch: int, checkpointing: bool, rate: float = RATE, **more: Any) -> Any:
    """Arguments of a trl trainer: bf16, AdamW, constant rate, nothing logged or saved.

    Args:
        kind: config class of the trainer.
        batch: rows of a step.
        checkpointing: trl's default is True, which costs time and saves memory.
        rate: learning rate.
        more: the trainer's own.
    """
    return kind(
        output_dir=tempfile.gettempdir(), max_steps=10**6, per_device_train_batch_size=batch, use_cpu=True, bf16=True,
        learning_rate=rate, weight_decay=DECAY, max_grad_norm=CLIP, lr_scheduler_type="constant", report_to=[],
        logging_strategy="no", save_strategy="no", disable_tqdm=True, gradient_checkpointing=checkpointing,
        train_sampling_strategy="sequential", **more,
    )  # fmt: skip


def trl_loop(turn: OnStep, trainer: type[Any], tokens: int, name: str, make: Callable[[type[Any]], Any]) -> None:
    """Train with ``trainer``, calling ``turn`` after each step with the loss named ``name``.

    Args:
        turn: called after each step.
        trainer: class of the trainer.
        tokens: useful tokens of a step.
        name: of the loss.
        make: builds the trainer from the class, given one that keeps its last loss.
    """
    from transformers import TrainerCallback

    told: dict[str, float] = {}

    class Told(trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            told[name] = float(loss.detach())
            return loss

    class AfterStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn(tokens, told)

    built = make(Told)
    built.add_callback(AfterStep())
    built.train()
