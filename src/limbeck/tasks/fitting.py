"""Prompts and new tokens within a model's context: what decoding runs with, and what had to give way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.decode.settings import Decoding
from limbeck.model.decoder import Decoder

__all__ = ["Fitting"]


@dataclass(frozen=True, slots=True)
class Fitting:
    """Decoding within a context, of which new tokens take half at most.

    Attributes:
        decoding: what runs.
        asked: new tokens that were asked for.
        prompts_cut: prompts longer than the rest of the context, which lose their beginning.
        prompts: number of prompts.
    """

    decoding: Decoding
    asked: int
    prompts_cut: int
    prompts: int

    @classmethod
    def of(cls, model: Decoder, decoding: Decoding, prompts: Sequence[Sequence[int]]) -> Fitting:
        """Lower ``max_new_tokens`` to half of the context, and count the prompts that are then cut."""
        context, asked = model.config.context, decoding.max_new_tokens
        if decoding.beyond_context:
            return cls(decoding, asked, 0, len(prompts))
        new = min(asked, max(context // 2, 1))
        cut = sum(len(prompt) > context - new for prompt in prompts)
        return cls(decoding.model_copy(update={"max_new_tokens": new}), asked, cut, len(prompts))

    def notes(self) -> dict[str, Any]:
        """Return the counts as a result's notes have them."""
        limited = {"new_tokens": self.decoding.max_new_tokens, "new_tokens_asked": self.asked}
        cut = {"prompts": self.prompts, "prompts_cut": self.prompts_cut}
        return cut | (limited if self.decoding.max_new_tokens < self.asked else {})
