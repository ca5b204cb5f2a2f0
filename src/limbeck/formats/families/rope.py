"""Rotary settings of config.json, in the spelling before transformers 5, in its own, or in both where they agree."""

from __future__ import annotations

import math
from typing import Any

from limbeck.errors import ModelError
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    YarnScaling,
)

__all__ = ["read_rope", "rotary_share", "scaling_of", "write_rope"]

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def read_rope(s: ConfigReader, *, share: bool = False) -> dict[str, Any]:
    """Return the fields of ``Rope``.

    Args:
        s: the config.json.
        share: the family rotates a share of a head, which ``rotary_share`` reads; else a share is refused.

    Raises:
        ModelError: two spellings that disagree, or a kind that is not supported.
    """
    old, new = s.inner("rope_scaling"), s.inner("rope_parameters")
    for key in (old.values.keys() & new.values.keys()) - {"rope_theta"}:
        if old.values[key] != new.values[key]:
            raise ModelError(f"{s.where} gives two values of {key}, in rope_scaling and in rope_parameters")
    theta = {x.number("rope_theta") for x in (s, old, new) if x.values.get("rope_theta") is not None}
    if len(theta) > 1:
        raise ModelError(f"{s.where} gives several values of rope_theta: {sorted(theta)}")
    said = ConfigReader({**old.values, **new.values}, new.where if new.values else old.where)
    if not share:
        for place in (s, said):
            if place.number("partial_rotary_factor", 1.0) != 1.0:
                raise ModelError(f"{place.where} has a partial_rotary_factor: its family rotates whole heads here")
    return {"theta": theta.pop() if theta else 10000.0, "scaling": scaling_of(said, s)}


def rotary_share(s: ConfigReader, default: float, *names: str) -> float:
    """Return the share of a head that is rotated, under ``partial_rotary_factor`` or one of ``names``."""
    said = [s.number(name) for name in names if s.values.get(name) is not None]
    for place in (s, s.inner("rope_scaling"), s.inner("rope_parameters")):
        if place.values.get("partial_rotary_factor") is not None:
            said.append(place.number("partial_rotary_factor"))
    if len(set(said)) > 1:
        raise ModelError(f"{s.where} gives several shares of a head to rotate: {sorted(set(said))}")
    return said[0] if said else default


def scaling_of(said: ConfigReader, s: ConfigReader) -> dict[str, Any] | None:
    """Return the fields of a scaling, from the object that describes it and the config.json around it."""
    kind = said.text("rope_type", said.text("type", "default"))
    if kind not in _KINDS:
        raise ModelError(f"{said.where} has rope_type '{kind}': supported are {', '.join(_KINDS)}")
    if kind == "default":
        return None
    context = s.size("max_position_embeddings")
    if kind == "linear":
        return {"kind": "linear", "factor": said.number("factor")}
    if kind == "dynamic":  # transformers reads the model's own context there, whatever else is given
        return {"kind": "dynamic", "factor": said.number("factor"), "original_context": context}
    original = said.size("original_max_position_embeddings", s.size("original_max_position_embeddings", context))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        return {"kind": "llama3", "original_context": original, **{name: said.number(name) for name in names}}
    if kind == "yarn":
        return _yarn(said, original, context)
    factor = said.number("factor", context / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "kind": "long",
        "short": _factors(said, "short_factor"),
        "long": _factors(said, "long_factor"),
        "original_context": original,
        "magnitude": said.number("attention_factor", magnitude),
    }


def _factors(said: ConfigReader, key: str) -> list[float]:
    values = said.values.get(key)
    if not isinstance(values, list) or not all(isinstance(v, int | float) and 0 < v < 1e30 for v in values):
        raise ModelError(f"{said.where} has {key} = {str(values)[:40]}, which is no list of positive numbers")
    return [float(v) for v in values]


def _yarn(said: ConfigReader, original: int, context: int) -> dict[str, Any]:
    factor = said.number("factor", context / original)

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    own, every = said.number("mscale", 0.0), said.number("mscale_all_dim", 0.0)
    usual = magnitude(own) / magnitude(every) if own and every else magnitude(1.0)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_context": original,
        "beta_fast": said.number("beta_fast", 0.0) or 32.0,
        "beta_slow": said.number("beta_slow", 0.0) or 1.0,
        "magnitude": said.number("attention_factor", usual),
        "truncate": said.flag("truncate", True),
    }


def write_rope(rope: Rope, **further: Any) -> dict[str, Any]:
    """Return both spellings, so that every version of transformers and llama.cpp's converter finds its own."""
    scaling = _scaling_to(rope)
    if scaling is None:
        plain = {"rope_theta": rope.theta, "rope_type": "default", **further}
        return {"rope_theta": rope.theta, "rope_parameters": plain, **further}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": rope.theta, **scaling, **further},
        **further,
    }


def _scaling_to(rope: Rope) -> dict[str, Any] | None:
    s = rope.scaling
    if isinstance(s, LinearScaling):
        return {"rope_type": "linear", "factor": s.factor}
    if isinstance(s, DynamicScaling):
        return {"rope_type": "dynamic", "factor": s.factor}
    if isinstance(s, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_context,
        }
    if isinstance(s, YarnScaling):
        return {
            "rope_type": "yarn",
            "factor": s.factor,
            "beta_fast": s.beta_fast,
            "beta_slow": s.beta_slow,
            "attention_factor": s.magnitude,
            "truncate": s.truncate,
            "original_max_position_embeddings": s.original_context,
        }
    if isinstance(s, LongScaling):
        return {
            "rope_type": "longrope",
            "short_factor": list(s.short),
            "long_factor": list(s.long),
            "attention_factor": s.magnitude,
            "original_max_position_embeddings": s.original_context,
        }
    return None
