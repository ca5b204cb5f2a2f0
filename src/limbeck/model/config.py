"""What a decoder is made of, as one frozen value for both families."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.model.patterns import AnyPattern, Causal, Sliding

__all__ = [
    "AnyScaling",
    "Classes",
    "DecoderConfig",
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "Rope",
    "YarnScaling",
]


class Llama3Scaling(Config):
    """Stretching of low rotary frequencies as in Llama 3.1+ (``rope_type: llama3``)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_context: int = Field(gt=0)


class LinearScaling(Config):
    """Every position divided by ``factor`` (Chen et al. 2023, position interpolation)."""

    kind: Literal["linear"]
    factor: float = Field(gt=0)


class DynamicScaling(Config):
    """A larger base the longer the longest sequence of a call is past ``original_context`` (dynamic NTK).

    As in transformers, keys in a cache keep the angles of the call that wrote them.
    """

    kind: Literal["dynamic"]
    factor: float = Field(ge=1)
    original_context: int = Field(gt=0)


class YarnScaling(Config):
    """Low frequencies divided by ``factor``, high ones kept, the turned vectors longer (Peng et al. 2023, YaRN)."""

    kind: Literal["yarn"]
    factor: float = Field(gt=0)
    original_context: int = Field(gt=0)
    beta_fast: float = Field(32.0, gt=0, description="turns within the original context above which nothing changes")
    beta_slow: float = Field(1.0, gt=0, description="turns below which a frequency is divided by the whole factor")
    magnitude: float = Field(gt=0, description="by which cosines and sines are multiplied")
    truncate: bool = Field(True, description="round the borders of the blend to whole dimensions")


class LongScaling(Config):
    """Each frequency divided by a factor of its own: one set up to ``original_context``, another past it (LongRoPE)."""

    kind: Literal["long"]
    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int = Field(gt=0)
    magnitude: float = Field(1.0, gt=0, description="by which cosines and sines are multiplied")


AnyScaling = Llama3Scaling | LinearScaling | DynamicScaling | YarnScaling | LongScaling


class Rope(Config):
    """Rotary position embedding (Su et al. 2021), half-split pairs: dimension i turns with i + rotary_width / 2."""

    theta: float = Field(10000.0, gt=0)
    scaling: AnyScaling | None = None


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
    What a Hugging Face family says of itself is translated to this in its file under ``formats/families``.
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
    rope_local: Rope | None = Field(None, description="of layers with a sliding window, where it is another")
    rotary_width: int = Field(0, ge=0, le=2**16, description="first columns of a head that are rotated; 0: all")
    unrotated: tuple[int, ...] = Field((), description="layers without rotary positions")
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(1e-5, gt=0)
    norm_at: Literal["before", "after", "both"] = Field(
        "before", description="where a branch is normalised: its input, its output, or both"
    )
    qk_norm: Literal["none", "head", "all"] = Field(
        "none", description="RMS norm of queries and keys: of each head, or of all heads as one vector"
    )
    parallel: bool = Field(False, description="attention and feed-forward both read the block's input")
    embed_scale: float = Field(1.0, gt=0, description="factor on embedded tokens")
    residual_scale: float = Field(1.0, gt=0, description="factor on what a branch adds")
    logit_scale: float = Field(1.0, gt=0, description="factor on logits")
    attention_scale: float | None = Field(None, gt=0, description="factor on scores; none: head_dim**-0.5")
    score_cap: float | None = Field(None, gt=0, description="bound scores softly: cap * tanh(score / cap)")
    logit_cap: float | None = Field(None, gt=0, description="bound logits softly, likewise")
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
        if not v.get("rotary_width"):
            v["rotary_width"] = v["head_dim"]
        if not v.get("ffn_width"):
            v["ffn_width"] = 8 * math.ceil(hidden_size / 3) if v.get("gated") else 4 * hidden_size
        return v

    @model_validator(mode="after")
    def _fits(self) -> DecoderConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads do not divide into {self.kv_heads} key/value heads")
        if self.positions == "rope" and self.rotary_width % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.rotary_width}")
        if self.rotary_width > self.head_dim:
            raise ValueError(f"{self.rotary_width} columns of a head cannot be rotated: it has {self.head_dim}")
        if self.parallel and self.norm_at != "before":
            raise ValueError("parallel branches are normalised before, not after")
        for rope in (self.rope, self.rope_local):
            long = rope.scaling if rope is not None and isinstance(rope.scaling, LongScaling) else None
            if long is not None and {len(long.short), len(long.long)} != {self.rotary_width // 2}:
                raise ValueError(f"rotary positions need {self.rotary_width // 2} factors, one for each frequency")
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
        """Return attention pattern of one layer."""
        return self.pattern[layer] if isinstance(self.pattern, tuple) else self.pattern

    def rope_at(self, layer: int) -> Rope | None:
        """Return rotary positions of one layer; None without any."""
        if self.positions != "rope" or layer in self.unrotated:
            return None
        return self.rope_local if self.rope_name(layer) == "local" else self.rope

    def rope_name(self, layer: int) -> Literal["all", "local"]:
        """Return which of the two kinds of rotary positions a layer has."""
        sliding = isinstance(self.pattern_at(layer), Sliding)
        return "local" if sliding and self.rope_local is not None else "all"

    def with_layers(self, layers: tuple[int, ...]) -> DecoderConfig:
        """Return the config of a decoder made of these layers alone, in this order."""
        pattern = tuple(self.pattern_at(i) for i in layers) if isinstance(self.pattern, tuple) else self.pattern
        unrotated = tuple(i for i, layer in enumerate(layers) if layer in self.unrotated)
        return self.model_copy(update={"layers": len(layers), "pattern": pattern, "unrotated": unrotated})
