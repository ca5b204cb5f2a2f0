"""Which model a verb opens, and how: fields of every verb that runs one model as it is, or trains it further."""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import Field, JsonValue

from limbeck.config import Config
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.source import Parts, device_of, dtype_of
from limbeck.jobs.start import Start
from limbeck.measure.cost import Cost, cost
from limbeck.measure.footprint import footprint
from limbeck.model.decoder import Decoder

__all__ = ["NAMES", "ModelSource", "StartingModel"]

NAMES = "a folder, a run, a .gguf file or a Hub id"
"""What a model's name may be."""


_MODEL: dict[str, JsonValue] = {"section": "model"}


class StartingModel(Config):
    """The model that a training starts from, and an adapter beside it."""

    model: str = Field(description=f"model to start from: {NAMES}", json_schema_extra=_MODEL)
    adapter: str | None = Field(
        None, description="PEFT adapter to load with it; only the adapter is trained further", json_schema_extra=_MODEL
    )

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load it, whatever the rows.

        Raises:
            LimbeckError: as ``limbeck.formats.load.load_bundle``.
        """
        bundle = load_bundle(self.model, device=device, adapter=self.adapter)
        facts = {} if bundle.adapter is None else {"adapter": str(bundle.adapter)}
        return Start(
            bundle.model, bundle.tokenizer, bundle.generation, self.model, facts, deployed_specs=bundle.deployed_specs
        )


class ModelSource(Config):
    """A model by name, an adapter beside it, and whether a GGUF file's codes are kept."""

    model: str = Field(description=NAMES, json_schema_extra={"positional": True})
    adapter: str | None = Field(None, description="PEFT adapter to load with it: a folder or a Hub id")
    keep_codes: bool = Field(
        False, description="keep the matrices of a .gguf file that are in Q8_0, Q4_0 or Q4_1 as codes, not as floats"
    )

    def load(self, dtype: str, device: str) -> Bundle:
        """Load it.

        Args:
            dtype: name of the precision, such as ``auto`` (fp32) or ``bf16``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            LimbeckError: as ``limbeck.formats.load.load_bundle``.
        """
        return load_bundle(
            self.model, dtype_of(dtype), device_of(device), adapter=self.adapter, keep_codes=self.keep_codes
        )

    def load_draft(self, draft: str, bundle: Bundle, dtype: str, device: str) -> Decoder:
        """Load the small model that proposes tokens to the model of ``bundle``.

        Raises:
            ConfigError: it has another tokenizer.
            LimbeckError: as ``limbeck.formats.load.load_bundle``.
        """
        found = load_bundle(draft, dtype_of(dtype), device_of(device))
        if found.tokenizer.fingerprint != bundle.tokenizer.fingerprint:
            raise ConfigError(
                f"draft {draft} has another tokenizer than {self.model}: take one of the same, a distilled student"
            )
        return found.model

    def cost(self, bundle: Bundle, dtype: str, memory: bool) -> Cost:
        """Return what the loaded ``bundle`` costs; with ``memory`` also its peak memory, in a process of its own."""
        peak = None
        if memory:
            kept = self.keep_codes
            peak = asdict(footprint(self.model, dtype_of(dtype), adapter=self.adapter, keep_codes=kept))
        return cost(bundle.model, bundle.folder, beside=bundle.adapter, peak=peak)
