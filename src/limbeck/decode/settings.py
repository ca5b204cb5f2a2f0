"""How text is decoded: one frozen config for greedy, sampling and beam search."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from limbeck.config import Config
from limbeck.model.cache import KVKind, KVKinds

__all__ = ["Decoding"]


class Decoding(Config):
    """How new tokens are chosen and when to stop. The default is greedy: the likeliest token each time.

    Options that the chosen method would not read are refused, so that nobody compares two names of one thing.
    """

    max_new_tokens: int = Field(128, ge=1, description="most tokens to generate, the end token included")
    temperature: float = Field(0.0, ge=0, description="divides the logits before sampling; 0: greedy")
    top_k: int = Field(0, ge=0, description="sample among the k likeliest tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of this probability; 1: all")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens below this share of the likeliest one; 0: none")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: tokens seen before lose; 1: off")
    beams: int = Field(1, ge=1, le=1024, description="hypotheses of a beam search; 1: off")
    length_penalty: float = Field(1.0, description="beam scores are log-probability / length ** this")
    n_best: int = Field(1, ge=1, description="hypotheses returned by a beam search, best first")
    samples: int = Field(1, ge=1, description="independent samples of each prompt")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the samples")
    stop: tuple[str, ...] = Field(
        (), description="texts that end a generation; they are cut off", json_schema_extra={"verbatim": True}
    )
    cache: KVKind = Field("model", description="keep keys and values in the model's dtype, or rounded to int8 or int4")
    kv_keys: KVKind | None = Field(None, description="keep keys otherwise than cache says; none: as cache")
    kv_values: KVKind | None = Field(None, description="keep values otherwise than cache says; none: as cache")
    truncate_prompts: bool = Field(False, description="cut a prompt that does not fit on its left, not refuse it")
    beyond_context: bool = Field(False, description="let rotary positions run past the model's trained length")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agrees(self) -> Decoding:
        if "" in self.stop:
            raise ValueError("an empty stop text would stop before the first token: leave it out")
        if self.beams > 1 and (self.temperature > 0 or self.samples > 1):
            raise ValueError(f"beam search ({self.beams} beams) does not sample: set temperature 0 and samples 1")
        if self.beams == 1 and (self.n_best > 1 or self.length_penalty != 1):
            raise ValueError("n_best and length_penalty belong to beam search: set beams above 1")
        if self.n_best > self.beams:
            raise ValueError(f"n_best {self.n_best} is more than the {self.beams} beams")
        filters = [n for n, on in (("top_k", self.top_k), ("top_p", self.top_p < 1), ("min_p", self.min_p)) if on]
        if self.temperature == 0 and filters:
            raise ValueError(f"{' and '.join(filters)} has no effect at temperature 0: set a temperature above 0")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"{self.samples} samples at temperature 0 would be copies: set a temperature above 0")
        return self

    @property
    def greedy(self) -> bool:
        """Takes the likeliest token each time."""
        return self.temperature == 0 and self.beams == 1

    @property
    def kv(self) -> KVKinds:
        """What keys and values are kept in."""
        return self.kv_keys or self.cache, self.kv_values or self.cache

    @property
    def outputs(self) -> int:
        """Generations returned for each prompt."""
        return self.n_best if self.beams > 1 else self.samples

    def seeded(self, seed: int) -> Decoding:
        """Return it with ``seed`` where it has none of its own, so that a study's seeds draw different samples."""
        return self if self.seed else self.model_copy(update={"seed": seed})
