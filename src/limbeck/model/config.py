"""What a decoder is made of, as one frozen value for both families."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.model.patterns import AnyPattern, Causal

__all__ = ["Classes", "DecoderConfig", "Llama3Scaling", "Rope"]


class Llama3Scaling(Config):
    """Stretching of low rotary frequencies as in Llama 3.1+ (``rope_type: llama3``)."""

    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_context: int = Field(gt=0)


class Rope(Config):
    """Rotary position embedding (Su et al. 2021), half-split pairs: dimension i turns with i + head_dim / 2."""

    theta: float = Field(10000.0, gt=0)
    scaling: Llama3Scaling | None = None


class Classes(Config):
    """A head of classes in the place of the head of tokens; ``model.heads`` reads it."""

    labels: tuple[str, ...] = Field(min_length=2, description="names of the classes, in the order of the head's rows")
    pool: Literal["last", "mean"] = Field(
        "last", description="what of a document is read: its last token, or the mean over its tokens"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Classes:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"two classes have one name among {', '.join(self.labels)}")
        return self


class DecoderConfig(Config):
    """Shape and parts of a decoder-only transformer.

    GPT-2 is ``positions="learned", norm="layer", activation="gelu_tanh", gated=False`` with every bias; Llama is
    ``positions="rope", norm="rms", activation="silu", gated=True`` without; Qwen2 adds ``qkv_bias``. Any mix is valid.
    """

    vocab_size: int = Field(gt=0, le=2**24, description="rows of the embedding, padding rows included")
    context: int = Field(1024, gt=0, le=2**31, description="longest sequence it is trained for, in tokens")
    layers: int = Field(12, ge=1, le=10_000)
    hidden_size: int = Field(768, ge=1, le=2**20, json_schema_extra={"old_name": "width"})
    heads: int = Field(12, ge=1, le=2**16, description="query heads")
    kv_heads: int = Field(0, ge=0, le=2**16, description="key and value heads; 0: as many as query heads")
    head_dim: int = Field(
        0, ge=0, le=2**16, description="0: hidden_size / heads", json_schema_extra={"old_name": "head_width"}
    )
    ffn_width: int = Field(
        0, ge=0, le=2**24, description="0: 4 x hidden_size, or 8/3 x hidden_size rounded up to 8 where gated"
    )
    positions: Literal["learned", "rope"] = "learned"
    rope: Rope = Rope()
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(1e-5, gt=0)
    activation: Literal["gelu_tanh", "gelu", "silu", "relu"] = "gelu_tanh"
    gated: bool = Field(False, description="gate the feed-forward: down(activation(gate(x)) * up(x))")
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    tied: bool = Field(True, description="the head is the embedding")
    classes: Classes | None = Field(None, description="what the head tells instead of the next token")
    dropout: float = Field(0.0, ge=0, lt=1, description="on embeddings, attention weights and residual branches")
    pattern: AnyPattern | tuple[AnyPattern, ...] = Field(Causal(), description="attention pattern, or one a layer")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        v: dict[str, Any] = dict(cls.current(values))
        try:
            hidden_size, heads = int(v.get("hidden_size", 768)), int(v.get("heads", 12))
        except (TypeError, ValueError, OverflowError):
            return v  # no numbers: the fields' own checks say so
        if not v.get("kv_heads"):
            v["kv_heads"] = heads
        if not v.get("head_dim"):
            if heads < 1 or hidden_size % heads:
                raise ValueError(f"hidden_size {hidden_size} does not divide into {heads} heads")
            v["head_dim"] = hidden_size // heads
        if not v.get("ffn_width"):
            v["ffn_width"] = 8 * math.ceil(hidden_size / 3) if v.get("gated") else 4 * hidden_size
        return v

    @model_validator(mode="after")
    def _fits(self) -> DecoderConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads do not divide into {self.kv_heads} key/value heads")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        if self.classes is not None and self.tied:
            raise ValueError("a head of classes has a weight of its own: set tied to false")
        if isinstance(self.pattern, tuple) and len(self.pattern) != self.layers:
            raise ValueError(f"{len(self.pattern)} attention patterns were given for {self.layers} layers")
        if self.positions == "learned":
            for p in {self.pattern_at(i) for i in range(self.layers)}:
                if p.sink_reach >= self.context:
                    raise ValueError(
                        f"a cache of {p.sink_reach + 1} tokens is longer than the {self.context} learned positions: "
                        "sinks at the cache's distance need a shorter window"
                    )
        return self

    @property
    def unbounded(self) -> bool:
        """Whether every layer sees no farther than its cache is long, so that text of any length can be read."""
        return all(self.pattern_at(i).unbounded for i in range(self.layers))

    @property
    def head_rows(self) -> int:
        """Rows of the head: ids, or classes."""
        return self.vocab_size if self.classes is None else len(self.classes.labels)

    def pattern_at(self, layer: int) -> AnyPattern:
        """Attention pattern of one layer."""
        return self.pattern[layer] if isinstance(self.pattern, tuple) else self.pattern

    def with_layers(self, layers: tuple[int, ...]) -> DecoderConfig:
        """Return the config of a decoder made of these layers alone, in this order."""
        pattern = tuple(self.pattern_at(i) for i in layers) if isinstance(self.pattern, tuple) else self.pattern
        return self.model_copy(update={"layers": len(layers), "pattern": pattern})
