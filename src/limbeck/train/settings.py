"""Everything a user may choose about training, but the data and the seed."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.errors import ConfigError

__all__ = ["TrainSettings"]


class TrainSettings(Config):
    """How long, how fast, how precisely, and what is kept on the way.

    One of ``steps`` and ``epochs`` says how long; with neither, one epoch.
    """

    steps: int | None = Field(None, ge=1, description="optimizer steps; excludes epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the training data; excludes steps; default 1")
    accumulation: int = Field(1, ge=1, description="micro-batches an optimizer step, on each rank")

    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "cosine", description="how the learning rate falls; wsd: warm up, stay, decay at the end"
    )
    warmup: float = Field(0.0, ge=0, description="rise of the learning rate: below 1 a share of all steps, else steps")
    final_fraction: float = Field(
        0.0, ge=0, le=1, description="share of the peak that the learning rate falls to, one step after the last"
    )
    decay_share: float = Field(0.2, gt=0, le=1, description="share of all steps in which wsd decays")

    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    decay_embeddings: bool = Field(False, description="weight decay on embedding tables too (a tied head is one)")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's memory of the gradient")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's memory of the squared gradient")
    eps: float = Field(1e-8, gt=0, description="AdamW's guard against division by zero")
    clip_norm: float = Field(1.0, ge=0, description="largest global norm of the gradient; 0: no clipping")

    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto", description="of the computation; bf16 keeps fp32 master weights; auto times fp32 and bf16 here"
    )
    checkpointing: bool = Field(False, description="recompute activations in the backward: less memory, a third slower")
    compile: bool = Field(
        False, description="compile blocks with torch.compile: the first steps of each shape are slow, the rest faster"
    )
    keep_gradients: bool = Field(False, description="keep gradient buffers between steps instead of freeing them")
    shard: bool = Field(False, description="with several ranks: split weights and optimizer state over them (FSDP2)")

    evaluate_every: int = Field(0, ge=0, description="steps between evaluations; 0: only at the end")
    evaluate_first: bool = Field(True, description="evaluate before the first step too, as the baseline")
    monitor: str = Field("valid/nll", description="metric that says which weights are best; empty: the last are")
    mode: Literal["min", "max"] = Field("min", description="whether the monitored metric is better low or high")
    patience: int = Field(0, ge=0, description="evaluations without a better value before stopping; 0: never")
    restore_best: bool = Field(True, description="end with the best weights instead of the last")

    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: only best, last, and on Ctrl-C")
    keep: int = Field(2, ge=1, description="newest checkpoints kept; the best is kept besides")
    log_every: int = Field(10, ge=1, description="steps between lines in metrics.jsonl")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs exclude each other: give one")
        if self.patience and not self.monitor:
            raise ValueError("patience needs a monitor: name the metric to watch")
        return self

    def total_steps(self, micro_batches_per_epoch: int, ranks: int = 1) -> int:
        """Return optimizer steps of the whole training; epochs are rounded up to whole steps.

        Raises:
            ConfigError: an epoch is asked of an endless or empty stream.
        """
        if self.steps is not None:
            return self.steps
        if micro_batches_per_epoch < 1:
            raise ConfigError("the training data has no epoch of its own: give steps instead of epochs")
        micro_batches = (self.epochs or 1.0) * micro_batches_per_epoch
        return max(1, math.ceil(micro_batches / (self.accumulation * ranks) - 1e-9))

    def warmup_steps(self, total: int) -> int:
        """Return steps of rising learning rate among ``total``."""
        return round(self.warmup * total) if self.warmup < 1 else min(int(self.warmup), total)
