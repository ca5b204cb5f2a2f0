"""Hugging Face's families against ``DecoderConfig``, both ways: one file a family, one line here.

A key of config.json that a family does not read, that is not known to be harmless, and that some family reads to
compute, refuses the model: what transformers would compute by it is not computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from limbeck.config import build
from limbeck.errors import ConfigError, ModelError
from limbeck.formats.families.family import HARMLESS, Family
from limbeck.formats.families.gemma import GEMMA2, GEMMA3
from limbeck.formats.families.gpt2 import GPT2
from limbeck.formats.families.gpt_neo import GPT_NEO
from limbeck.formats.families.gpt_neox import GPT_NEOX
from limbeck.formats.families.llama import LLAMA
from limbeck.formats.families.mistral import MISTRAL
from limbeck.formats.families.olmo2 import OLMO2
from limbeck.formats.families.opt import OPT
from limbeck.formats.families.qwen2 import QWEN2
from limbeck.formats.families.qwen3 import QWEN3
from limbeck.formats.pieces import TensorPiece
from limbeck.formats.settings import ConfigReader
from limbeck.model.config import DecoderConfig

__all__ = ["FAMILIES", "HARMLESS", "Family", "config_from", "config_to", "family_of", "hub_prefix", "ignored", "pieces"]

_ALL = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GPT_NEOX, OPT, OLMO2, GEMMA2, GPT_NEO)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}
"""Values of ``model_type`` that are read and written; SmolLM2 and TinyLlama say llama, Pythia gpt_neox."""

_PHRASES: Mapping[str, str] = {
    "kv_heads": "fewer key/value than query heads",
    "head_dim": "a head width other than width / heads",
    "qkv_bias": "other biases",
    "out_bias": "other biases",
    "ffn_bias": "other biases",
    "pattern": "its attention patterns",
    "positions": "{positions} positions",
    "norm": "{norm} norm",
    "gated": "gated={gated}",
}
"""Field of the decoder -> how people call what a family cannot say."""


def config_from(values: Mapping[str, Any], where: str) -> tuple[str, DecoderConfig]:
    """Read a config.json's ``values``.

    Args:
        values: the JSON object.
        where: the file's name, for messages.

    Returns:
        The family (its ``model_type``) and the decoder it describes.

    Raises:
        ModelError: an unsupported family or setting, or a size that is missing or cannot be.
    """
    s = ConfigReader(values, where)
    name = s.text("model_type", "")
    if name not in FAMILIES:
        said = f"model_type '{name}'" if name else "no model_type"
        raise ModelError(f"{where} has {said}: supported are {', '.join(FAMILIES)} and limbeck's own")
    s.refuse("quantization_config", "weights quantized by other tools are not read; use the unquantized model")
    s.expect("is_encoder_decoder", False)
    fields = FAMILIES[name].read(s)
    _refuse_unread(s, FAMILIES[name])
    try:
        return name, build(DecoderConfig, fields, where)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def _refuse_unread(s: ConfigReader, family: Family) -> None:
    """Refuse a key that this family does not read, but another reads to compute (I38)."""
    for key in s.values.keys() - s.read - HARMLESS - family.harmless:
        value = s.values[key]
        if value is not None and value is not False and key in _computing():
            raise ModelError(f"{s.where} has {key} = {str(value)[:40]}, which is not supported for {family.name}")


@cache
def _computing() -> frozenset[str]:
    """Every key that some family writes, and so reads to compute."""
    plain = DecoderConfig(vocab_size=1, layers=1)
    return frozenset(key for family in _ALL for key in family.write(plain)) - HARMLESS


def config_to(family: str, config: DecoderConfig) -> dict[str, Any]:
    """Write ``config``, which ``family_of`` calls ``family``, as values of a config.json that transformers reads."""
    known = FAMILIES[family]
    head = {"architectures": [known.architecture], "model_type": family, "vocab_size": config.vocab_size}
    tail = {"initializer_range": 0.02, "tie_word_embeddings": config.tied, "use_cache": True}
    return {**head, **known.write(config), **tail}


def family_of(config: DecoderConfig) -> tuple[str | None, str]:
    """Return which family says exactly ``config``: what it writes must read back as the same decoder.

    Returns:
        The family and an empty string, or None and what the nearest family cannot say.
    """
    if config.classes is not None:
        return None, "a head of classes"
    nearest: tuple[int, str, str] | None = None
    for name in sorted(FAMILIES, key=lambda name: FAMILIES[name].usual != config.activation):
        odd = _unsaid(name, config)
        if not odd:
            return name, ""
        if nearest is None or len(odd) < nearest[0]:
            phrase = _PHRASES.get(odd[0], odd[0]).format(**config.model_dump())
            nearest = (len(odd), name, phrase)
    assert nearest is not None
    return None, f"{nearest[2]} in the {nearest[1]} layout"


def _unsaid(name: str, config: DecoderConfig) -> list[str]:
    """Fields of ``config`` that do not come back from what the family writes."""
    try:
        back = config_from(config_to(name, config), name)[1]
    except ModelError:
        return [field for field in type(config).model_fields if field in _PHRASES]
    return [field for field in type(config).model_fields if getattr(back, field) != getattr(config, field)]


def pieces(family: str, config: DecoderConfig, prefix: str | None = None) -> Iterator[TensorPiece]:
    """Yield every tensor of the family's file, in order, the head only where it is untied.

    Args:
        family: a key of ``FAMILIES``.
        config: the decoder.
        prefix: what stands before the stack's keys; None: what ``save_pretrained`` writes.

    Yields:
        One ``TensorPiece`` a tensor; pieces of one parameter follow one another.
    """
    known = FAMILIES[family]
    yield from known.pieces(config, known.prefix if prefix is None else prefix)
    if not config.tied:
        yield TensorPiece(known.head, "head.weight", (config.vocab_size, config.hidden_size))


def hub_prefix(family: str, keys: Mapping[str, object]) -> str:
    """Return how a file spells the stack: with a prefix such as ``model.``, or bare as the Hub's gpt2 does."""
    return "" if FAMILIES[family].first in keys else FAMILIES[family].prefix


def ignored(family: str, key: str) -> bool:
    """Return whether ``key`` is on the family's list of tensors that are no weights."""
    return FAMILIES[family].ignored.fullmatch(key) is not None
