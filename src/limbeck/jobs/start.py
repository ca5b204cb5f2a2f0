"""What a training begins from: the model, its tokenizer, and the tokenised data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.data.batch import Example
from limbeck.data.batches import Batches
from limbeck.data.mixture import Mixture
from limbeck.data.prompts import EncodingReport
from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.load import Bundle
from limbeck.model.decoder import Decoder
from limbeck.techniques.technique import Technique, train_only

__all__ = ["Encoded", "Source", "Start"]

Source = Batches | Mixture
"""What micro-batches are drawn from: examples in memory, or shards on disk."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a training begins from.

    Attributes:
        model: the decoder before any technique.
        tokenizer: its tokenizer.
        generation: generation defaults to save beside the result.
        source: where the weights came from, for the report.
        facts: further things worth reporting, such as the teacher's name.
        teacher: the model to learn from, where there is one.
        fresh: its weights are random: there is no generality to lose.
        deployed_specs: what earlier techniques left in the model: grids of its weights, adapters beside
            them. They stay, and are saved before those of this run's techniques.
    """

    model: Decoder
    tokenizer: Tokenizer
    generation: Mapping[str, Any]
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    teacher: Bundle | None = None
    fresh: bool = False
    deployed_specs: tuple[Technique, ...] = ()

    def __post_init__(self) -> None:
        """Train the adapter alone where the model has one."""
        for deployed_spec in self.deployed_specs:
            train_only(self.model, deployed_spec.trained(self.model))

    @property
    def context(self) -> int:
        """Tokens that both the model and its teacher can read at once."""
        models = [self.model] if self.teacher is None else [self.model, self.teacher.model]
        return min(model.config.context for model in models)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised parts of the data.

    Attributes:
        train: examples to learn from; of corpora on disk the first documents alone, for probes and calibration.
        valid: held-out examples.
        report: of the encoding.
        context: tokens of a sequence.
        bytes_per_token: of each corpus whose held-out loss is told by itself; its examples' ids begin with ``name/``.
    """

    train: list[Example]
    valid: list[Example]
    report: EncodingReport
    context: int
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)

    def held_out(self) -> list[tuple[str, list[Example], float]]:
        """Name, examples and bytes a token (0: not told) of all held-out examples, then of each corpus's."""
        if not self.valid:
            return []
        parts = {name: [e for e in self.valid if e.id.startswith(f"{name}/")] for name in self.bytes_per_token}
        return [
            ("valid", self.valid, 0.0),
            *((f"valid/{name}", some, self.bytes_per_token[name]) for name, some in parts.items()),
        ]
