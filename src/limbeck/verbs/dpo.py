"""``limbeck dpo``: a model learns to prefer chosen answers over rejected ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.batch import Example
from limbeck.data.pairs import collate_pairs, pair_of
from limbeck.errors import ConfigError
from limbeck.formats.load import load_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.source import Parts
from limbeck.jobs.training import Encoded, Start, TrainingJob
from limbeck.losses.preference import PreferenceLoss
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import AdapterOff, Frozen, Reference
from limbeck.objectives.reference_store import read_reference, write_reference
from limbeck.objectives.teacher import fingerprint
from limbeck.run import Run
from limbeck.tasks.preferences import Preferences
from limbeck.tasks.table import AnyTask
from limbeck.techniques.lora_layer import switched_off, untouched
from limbeck.train.settings import TrainSettings

__all__ = ["DPO", "PreferenceSettings"]

_PREFERENCE: dict[str, JsonValue] = {"section": "preference"}
_MODEL: dict[str, JsonValue] = {"section": "model"}


class PreferenceSettings(TrainSettings):
    """How long, how fast, how precisely, and what is kept on the way.

    One of ``steps`` and ``epochs`` says how long; with neither, one epoch.
    """

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    monitor: str = Field("valid/preference", description="metric that says which weights are best; empty: the last are")


class DPO(TrainingJob):
    """Train a model on preference pairs against what it was at the start (Rafailov et al. 2023).

    The loss of a pair is ``-log sigmoid(beta h)``, h being how much more than the reference the model prefers the
    chosen answer: log 2 at the start. Dropout is off unless asked for, as the reference has none.
    """

    verb: ClassVar[str] = "dpo"
    summary: ClassVar[str] = "train a model to prefer chosen answers over rejected ones"

    model: str = Field(description=f"model to start from: {NAMES}", json_schema_extra=_MODEL)
    adapter: str | None = Field(
        None, description="PEFT adapter to put beside it, which alone is trained further", json_schema_extra=_MODEL
    )
    task: AnyTask = Field(Preferences(), description="kind of work")
    train: PreferenceSettings = Field(default_factory=PreferenceSettings, description="the training itself")
    loss: PreferenceLoss = Field(
        "sigmoid", description="sigmoid (DPO) or ipo (Azar et al. 2023)", json_schema_extra=_PREFERENCE
    )
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference", json_schema_extra=_PREFERENCE)
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed rate of wrong labels (cDPO)", json_schema_extra=_PREFERENCE
    )
    average: bool = Field(
        False, description="compare log-probabilities a token, not of whole answers", json_schema_extra=_PREFERENCE
    )
    reference: Literal["auto", "frozen", "adapter_off", "precomputed"] = Field(
        "auto",
        description="frozen: a copy of the start; adapter_off: the model itself without its new adapter; precomputed: "
        "log-probabilities written once; auto: adapter_off where it can be, else frozen",
        json_schema_extra=_PREFERENCE,
    )
    reference_file: str | None = Field(
        None,
        description="where precomputed log-probabilities lie, shared by runs; none: inside the run",
        json_schema_extra=_PREFERENCE,
    )
    dropout: bool = Field(False, description="keep the model's own dropout", json_schema_extra=_PREFERENCE)

    @model_validator(mode="after")
    def _agrees(self) -> DPO:
        if self.reference_file is not None and self.reference != "precomputed":
            raise ValueError("reference_file needs reference=precomputed")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("label_smoothing belongs to the sigmoid loss: IPO has none")
        return self

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load the model."""
        bundle = load_bundle(self.model, device=device, adapter=self.adapter)
        if not self.dropout:
            bundle.model.switch_off_dropout()
        facts = {} if bundle.adapter is None else {"adapter": str(bundle.adapter)}
        return Start(
            bundle.model, bundle.tokenizer, bundle.generation, self.model, facts, deployed_specs=bundle.deployed_specs
        )

    def collate_fn(self, rows: Sequence[Sequence[Example]], pad_id: int) -> Any:
        """Both sides of the pairs."""
        return collate_pairs(rows, pad_id)

    def watched(self, objective: AnyObjective) -> AnyObjective:
        """The same as is learned, with its margins and accuracies."""
        return objective

    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """``Preference`` against the model as it is now, before the first step."""
        return Preference(
            reference=self._reference(model, start, data, run),
            beta=self.beta,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            average=self.average,
        )

    def reference_kind(self, model: Decoder) -> str:
        """What ``reference`` comes to for this model.

        Raises:
            ConfigError: the adapter is to be switched off, but without it the model is another than it starts from.
        """
        able = untouched(model)
        if self.reference == "adapter_off" and not able:
            raise ConfigError(
                "with reference=adapter_off a new adapter alone must learn (--technique lora): without it the model "
                "must be what the training starts from; use reference=frozen or precomputed"
            )
        if self.reference == "auto":
            return "adapter_off" if able else "frozen"
        return self.reference

    def _reference(self, model: Decoder, start: Start, data: Encoded, run: Run | None) -> Reference:
        kind = self.reference_kind(model)
        if kind == "adapter_off":
            return AdapterOff(switched_off)
        if kind == "frozen" or run is None:
            return Frozen(model)
        file = run.path / "reference.json" if self.reference_file is None else Path(self.reference_file)
        pairs, name = [*data.train, *data.valid], fingerprint(model)
        if not file.is_file():
            batches = self._fixed(pairs, start, data.context, self.collate_fn)
            write_reference(model, name, batches, file, model.device)
        return read_reference(file, name, (pair_of(e).key for e in pairs))

    def extras(self, model: Decoder, objective: AnyObjective, start: Start, data: Encoded, run: Run) -> dict[str, Any]:
        """What was learned, and against what."""
        assert isinstance(objective, Preference)
        return {"preference": {"loss": self.loss, "beta": self.beta, "reference": objective.reference.kind}}
