"""``limbeck pretrain``: a fresh decoder on text."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.hub import resolve
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.objectives.objective import AnyObjective
from limbeck.recipes.fit import Encoded, Fit, Start
from limbeck.recipes.parts import Parts
from limbeck.run import Run

__all__ = ["Pretrain"]

_MODEL: dict[str, JsonValue] = {"section": "model"}


class Pretrain(Fit):
    """Train a fresh decoder from random weights."""

    verb: ClassVar[str] = "pretrain"
    summary: ClassVar[str] = "train a fresh decoder on text"

    architecture: Architecture = Field(default_factory=Architecture, description="the decoder to build")
    tokenizer: str | None = Field(
        None,
        description="folder, run or Hub id of a tokenizer; none: train one on the training rows",
        json_schema_extra=_MODEL,
    )
    vocab_size: int = Field(4096, ge=257, description="entries of a tokenizer trained here", json_schema_extra=_MODEL)
    packing: bool = Field(
        True, description="fill rows with several whole documents", json_schema_extra={"section": "data"}
    )

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Pretrain:
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set and self.vocab_size != 4096:
            raise ValueError("vocab_size is for a tokenizer trained here: leave it out beside 'tokenizer'")
        return self

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load or train the tokenizer, build the decoder, draw its weights."""
        if self.tokenizer is not None:
            tokenizer, source = Tokenizer.load(resolve(self.tokenizer)), f"tokenizer of {self.tokenizer}"
        else:
            texts = (str(row.fields[name]) for row in parts.train for name in self.task.required)
            tokenizer, source = Tokenizer.train(texts, self.vocab_size), "tokenizer trained on the training rows"
        model = Decoder(self.architecture.config(tokenizer.vocab_size)).to(device)
        return Start(model, tokenizer, {}, f"random weights; {source}", fresh=True)

    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """The task's own."""
        return self.task.objective()
