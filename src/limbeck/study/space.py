"""The space of a search as a value: knobs, chains of verbs, measures, limits and an objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.errors import nearest
from limbeck.study.plan import fill, references

__all__ = ["Knob", "SearchPlan", "ChainStep", "address", "knobs_of"]

Value = str | int | float | bool | None


class Knob(Config):
    """One thing that may be turned: some values, or a range."""

    choices: tuple[Any, ...] = Field((), description="values to choose from")
    low: float | None = Field(None, description="least value of a range")
    high: float | None = Field(None, description="greatest value of a range")
    log: bool = Field(False, description="draw from the range on a logarithmic scale")
    whole: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _one_way(self) -> Knob:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("a knob has either 'choices' or a range of 'low' and 'high'")
        if not self.choices and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError("a range needs 'low' below 'high'")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("a logarithmic range starts above 0")
        return self


class ChainStep(Config):
    """One verb of a chain. ``@base`` names the base, ``@name`` an earlier step's run, ``$knob`` a knob's value."""

    name: str = Field(description="how later steps name it")
    verb: Literal["pretrain", "finetune", "distill", "dpo", "quantize"] = Field(description="what it does")
    values: dict[str, Any] = Field(default_factory=dict, description="the verb's values")


class SearchPlan(Config):
    """What ``limbeck fit`` searches."""

    title: str = ""
    base: str = Field(description="the model to start from: a folder, a run, a .gguf file or a Hub id")
    common: dict[str, Any] = Field(default_factory=dict, description="values of every verb that has the key")
    pipelines: dict[str, tuple[ChainStep, ...]] = Field(
        min_length=1, description="chains of verbs; the search chooses one"
    )
    space: dict[str, Knob] = Field(default_factory=dict, description="knobs that the chains name as $knob")
    measure: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> values of 'evaluate', without the model; 'general' tells lost generality"
    )
    limits: str = Field("", description="such as 'bytes <= 40MB, ms_per_token <= 5, lost_generality <= 1%'")
    objective: str = Field(description="such as 'maximise accuracy'; several make a front")
    trials: int = Field(20, ge=1, description="candidates to try")
    startup: int = Field(8, ge=1, description="of these drawn at random before the search learns")
    probe: float = Field(0.02, ge=0, le=0.02, description="share of an arm's training steps that its price may cost")
    rungs: tuple[float, ...] = Field(
        (), description="shares of the training steps at which successive halving drops candidates; one objective only"
    )

    @model_validator(mode="after")
    def _known(self) -> SearchPlan:
        for pipeline, steps in self.pipelines.items():
            seen = ["base"]
            for step in steps:
                for need in sorted(references(step.values)):
                    if need not in seen:
                        raise ValueError(f"step '{step.name}' of '{pipeline}' needs '@{need}'{nearest(need, seen)}")
                for knob in sorted(knobs_of(step.values)):
                    if knob not in self.space:
                        raise ValueError(f"step '{step.name}' names '${knob}', no knob{nearest(knob, self.space)}")
                seen.append(step.name)
        if list(self.rungs) != sorted(set(self.rungs)) or any(not 0 < r < 1 for r in self.rungs):
            raise ValueError("rungs are rising shares between 0 and 1")
        return self

    def steps(self, chosen: Mapping[str, Any]) -> tuple[ChainStep, ...]:
        """Return the chain of ``chosen``, its knobs filled in."""
        steps = self.pipelines[chosen["pipeline"]]
        return tuple(s.model_copy(update={"values": fill(s.values, chosen)}) for s in steps)


def knobs_of(value: Any) -> set[str]:
    """Return the names of the knobs (``$name``) anywhere in ``value``."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("$") and not value.startswith("${") else set()
    if isinstance(value, Mapping):
        return {name for v in value.values() for name in knobs_of(v)}
    if isinstance(value, list | tuple):
        return {name for v in value for name in knobs_of(v)}
    return set()


def address(value: Any) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of ``value`` as canonical JSON: equal content, equal folder."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
