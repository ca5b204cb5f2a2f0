"""``limbeck finetune``: a given model on a task."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from limbeck.formats.load import load_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.source import Parts
from limbeck.jobs.training import Encoded, Start, TrainingJob
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.run import Run

__all__ = ["Finetune"]


class Finetune(TrainingJob):
    """Train a given model further, whole or through techniques such as LoRA."""

    verb: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train a model on a task, whole or through techniques such as LoRA"

    model: str = Field(description=f"model to start from: {NAMES}", json_schema_extra={"section": "model"})
    adapter: str | None = Field(
        None,
        description="PEFT adapter to put beside it, which alone is trained further",
        json_schema_extra={"section": "model"},
    )

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load the model."""
        bundle = load_bundle(self.model, device=device, adapter=self.adapter)
        facts = {} if bundle.adapter is None else {"adapter": str(bundle.adapter)}
        return Start(
            bundle.model, bundle.tokenizer, bundle.generation, self.model, facts, deployed_specs=bundle.deployed_specs
        )

    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """The task's own."""
        return self.task.objective()
