"""Named sizes, and the choice of an architecture from a preset and a few changes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.errors import ConfigError
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding

__all__ = ["PRESETS", "Architecture"]

_MODERN: dict[str, Any] = {
    "positions": "rope",
    "norm": "rms",
    "activation": "silu",
    "gated": True,
    "qkv_bias": False,
    "out_bias": False,
    "ffn_bias": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "toy": {**_MODERN, "layers": 4, "hidden_size": 128, "heads": 4, "kv_heads": 2, "context": 256},
    "toy-gpt2": {"layers": 4, "hidden_size": 128, "heads": 4, "context": 256},
    "10m": {**_MODERN, "layers": 8, "hidden_size": 288, "heads": 6, "kv_heads": 3, "context": 512},
    "30m": {**_MODERN, "layers": 10, "hidden_size": 448, "heads": 7, "context": 1024},
    "124m": {"layers": 12, "hidden_size": 768, "heads": 12, "context": 1024},
    "253m": {
        **_MODERN,
        "layers": 12,
        "hidden_size": 1024,
        "heads": 16,
        "ffn_width": 4096,
        "context": 1024,
        "tied": True,
    },
}
"""Sizes by name; ``124m`` is GPT-2 small, the rest but ``toy-gpt2`` are of the modern family."""


class Architecture(Config):
    """A fresh decoder: a preset and what to change of it. The vocabulary comes from the tokenizer."""

    preset: Literal["toy", "toy-gpt2", "10m", "30m", "124m", "253m"] = Field(
        "toy", description="named size to start from"
    )
    layers: int | None = Field(None, ge=1, description="blocks")
    hidden_size: int | None = Field(
        None, ge=1, description="size of the hidden states", json_schema_extra={"old_name": "width"}
    )
    heads: int | None = Field(None, ge=1, description="query heads")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads; fewer than heads: grouped queries")
    ffn_width: int | None = Field(None, ge=1, description="width of the feed-forward")
    context: int | None = Field(None, ge=2, description="longest sequence in tokens")
    positions: Literal["learned", "rope"] | None = Field(None, description="position embedding")
    norm: Literal["layer", "rms"] | None = Field(None, description="normalisation")
    activation: Literal["gelu_tanh", "gelu", "silu", "relu"] | None = Field(None, description="of the feed-forward")
    gated: bool | None = Field(None, description="gate the feed-forward (SwiGLU with silu)")
    tied: bool | None = Field(None, description="share the head with the embedding")
    dropout: float | None = Field(None, ge=0, lt=1, description="while training")
    window: int | None = Field(None, ge=1, description="positions that attention sees; none: all")
    sinks: int = Field(0, ge=0, description="first positions that a window always sees (attention sinks)")
    parameters: int | None = Field(
        None, ge=1, description="size to reach within 1 %, by the width of the feed-forward, so that variants compare"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Architecture:
        if self.sinks and self.window is None:
            raise ValueError("sinks are kept beside a window: give one, without it every position is seen anyway")
        if self.parameters is not None and self.ffn_width is not None:
            raise ValueError("parameters sets the width of the feed-forward: leave ffn_width out")
        return self

    def config(self, vocab_size: int) -> DecoderConfig:
        """Return the decoder's config over ``vocab_size`` tokens."""
        chosen = self.model_dump(exclude={"preset", "window", "sinks", "parameters"})
        changes = {k: v for k, v in chosen.items() if v is not None}
        base = dict(PRESETS[self.preset])
        if "hidden_size" in changes or "heads" in changes:
            base.pop("ffn_width", None)
        if "heads" in changes and "kv_heads" not in changes:
            base.pop("kv_heads", None)
        if self.window is not None:
            changes["pattern"] = Sliding(window=self.window, sinks=self.sinks)
        config = DecoderConfig.model_validate({"vocab_size": vocab_size, **base, **changes})
        return config if self.parameters is None else _sized(config, self.parameters)


def _sized(config: DecoderConfig, parameters: int) -> DecoderConfig:
    """Return the config whose feed-forward is as wide as brings it nearest to so many parameters.

    Raises:
        ConfigError: no width comes within 1 %.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return Decoder(config.model_copy(update={"ffn_width": width})).count_parameters()

    one, two = count(1), count(2)
    width = max(1, round((parameters - one) / (two - one)) + 1)
    found = count(width)
    if abs(found - parameters) > 0.01 * parameters:
        raise ConfigError(
            f"with {config.layers} layers of hidden size {config.hidden_size} no feed-forward comes within 1 % of "
            f"{parameters:,} parameters (nearest: {found:,}); change layers, hidden_size or the vocabulary"
        )
    return config.model_copy(update={"ffn_width": width})
