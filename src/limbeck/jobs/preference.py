"""Direct preference optimization: its options, its objective against a reference, and where the reference is from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.pairs import collate_pairs, pair_of
from limbeck.errors import ConfigError
from limbeck.jobs.model_source import StartingModel
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import PreparedTraining, rows_in_memory
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Start
from limbeck.jobs.training import TrainingJob
from limbeck.losses.preference import PreferenceLoss
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import AdapterOff, Frozen, Reference
from limbeck.objectives.reference_store import read_reference, write_reference
from limbeck.objectives.teacher import fingerprint
from limbeck.tasks.preferences import Preferences
from limbeck.tasks.table import AnyTask
from limbeck.techniques.lora_layer import switched_off, untouched
from limbeck.train.settings import TrainSettings

__all__ = ["PreferenceOptions", "PreferenceSettings", "preference_training"]

_PREFERENCE: dict[str, JsonValue] = {"section": "preference"}


class PreferenceSettings(TrainSettings):
    """How long, how fast, how precisely, and what is kept on the way.

    One of ``steps`` and ``epochs`` says how long; with neither, one epoch.
    """

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    monitor: str = Field("valid/preference", description="metric that says which weights are best; empty: the last are")


class PreferenceOptions(StartingModel, TrainingOptions):
    """A model, its reference, and the loss that compares them."""

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
    def _agrees(self) -> PreferenceOptions:
        if self.reference_file is not None and self.reference != "precomputed":
            raise ValueError("reference_file needs reference=precomputed")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("label_smoothing belongs to the sigmoid loss: IPO has none")
        return self


def preference_training(options: PreferenceOptions) -> TrainingJob:
    """Return the job that trains a model on preference pairs."""
    return TrainingJob(
        options,
        partial(_start, options),
        rows_in_memory(options, collate_pairs),
        partial(_objective, options),
        watched=_watch_what_is_learned,
        extras=partial(_told, options),
    )


def _start(options: PreferenceOptions, parts: Parts, device: torch.device) -> Start:
    start = options.start(parts, device)
    if not options.dropout:
        start.model.switch_off_dropout()
    return start


def _watch_what_is_learned(prepared: PreparedTraining, objective: AnyObjective) -> AnyObjective:
    """Return the same objective, with its margins and accuracies."""
    return objective


def _objective(options: PreferenceOptions, prepared: PreparedTraining) -> AnyObjective:
    """``Preference`` against the model as it is now, before the first step."""
    return Preference(
        reference=_reference(options, prepared),
        beta=options.beta,
        loss=options.loss,
        label_smoothing=options.label_smoothing,
        average=options.average,
    )


def _reference_kind(options: PreferenceOptions, model: Decoder) -> str:
    """Return what ``reference`` comes to for this model.

    Raises:
        ConfigError: the adapter is to be switched off, but without it the model is another than it starts from.
    """
    able = untouched(model)
    if options.reference == "adapter_off" and not able:
        raise ConfigError(
            "with reference=adapter_off a new adapter alone must learn (--technique lora): without it the model "
            "must be what the training starts from; use reference=frozen or precomputed"
        )
    if options.reference == "auto":
        return "adapter_off" if able else "frozen"
    return options.reference


def _reference(options: PreferenceOptions, prepared: PreparedTraining) -> Reference:
    model, run = prepared.model, prepared.run
    kind = _reference_kind(options, model)
    if kind == "adapter_off":
        return AdapterOff(switched_off)
    if kind == "frozen" or run is None:
        return Frozen(model)
    file = run.path / "reference.json" if options.reference_file is None else Path(options.reference_file)
    pairs, name = [*prepared.data.train, *prepared.data.valid], fingerprint(model)
    if not file.is_file():
        write_reference(model, name, prepared.fixed(pairs, collate_pairs), file, model.device)
    return read_reference(file, name, (pair_of(e).key for e in pairs))


def _told(options: PreferenceOptions, prepared: PreparedTraining, objective: AnyObjective) -> Mapping[str, Any]:
    """Return what was learned, and against what."""
    assert isinstance(objective, Preference)
    return {"preference": {"loss": options.loss, "beta": options.beta, "reference": objective.reference.kind}}
