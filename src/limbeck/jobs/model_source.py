"""Which model a verb opens, and how: fields of every verb that runs one model as it is."""

from __future__ import annotations

from pydantic import Field

from limbeck.config import Config
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.source import device_of, dtype_of
from limbeck.model.decoder import Decoder

__all__ = ["NAMES", "ModelSource"]

NAMES = "a folder, a run, a .gguf file or a Hub id"
"""What a model's name may be."""


class ModelSource(Config):
    """A model by name, an adapter beside it, and whether a GGUF file's codes are kept."""

    model: str = Field(description=NAMES, json_schema_extra={"positional": True})
    adapter: str | None = Field(None, description="PEFT adapter to put beside it: a folder or a Hub id")
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
