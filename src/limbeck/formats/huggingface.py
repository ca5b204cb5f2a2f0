"""Hugging Face model folders, read strictly and written so that transformers opens them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import CheckpointError, ModelError
from limbeck.formats.families.table import config_from, config_to, family_of, hub_prefix, ignored, pieces
from limbeck.formats.pieces import check, check_dtype, fill, meta, write_order
from limbeck.formats.weights import SHARD_BYTES, WeightFiles, write_weights
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.storage import write_json

__all__ = ["read_model", "write_model"]

HEAD = "lm_head.weight"
_ROWS = 4096  # compared at a time, so that no second copy in fp32 arises


def read_model(
    folder: Path,
    values: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Load a GPT-2, Llama, Qwen2 or Mistral folder, tensor by tensor, with every key accounted for (I11, I24).

    Args:
        folder: where ``model.safetensors`` or its index lies.
        values: the folder's config.json.
        dtype: what every weight is cast to.
        device: where they go.

    Returns:
        The decoder in evaluation mode.

    Raises:
        ModelError: an unsupported family or setting, or no safetensors.
        CheckpointError: a truncated file, a missing or extra key, a shape that does not fit; nothing was allocated.
    """
    family, config = config_from(values, str(folder / "config.json"))
    weights = WeightFiles(folder)
    prefix = hub_prefix(family, weights.headers)
    check(pieces(family, config, prefix), weights, lambda k: ignored(family, k) or (config.tied and k == HEAD))
    if config.tied and HEAD in weights.headers:
        _check_tied(weights, next(pieces(family, config, prefix)).key)
    model = _bare(config, dtype)
    fill(model, list(pieces(family, config, prefix)), weights, device)
    return model.eval()


def _bare(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    model = meta(lambda: Decoder(config).to(dtype))
    assert isinstance(model, Decoder)
    return model


def _check_tied(weights: WeightFiles, embedding: str) -> None:
    """Refuse a written head that differs from the embedding it is tied to: one of two models is meant."""
    for key in (HEAD, embedding):
        check_dtype(key, weights.headers[key], torch.float32)
    head, embed = weights.read(HEAD), weights.read(embedding)
    same = head.shape == embed.shape and all(
        torch.equal(head[at : at + _ROWS].float(), embed[at : at + _ROWS].float()) for at in range(0, len(head), _ROWS)
    )
    if not same:
        raise CheckpointError(
            f"'{HEAD}' in {weights.headers[HEAD].file} differs from '{embedding}', but its config.json ties them: "
            'set "tie_word_embeddings": false there if the head is its own'
        )


def write_model(model: Decoder, folder: Path, extra: Mapping[str, Any], shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and safetensors as ``save_pretrained`` does, a tied head once (I20).

    Args:
        model: a decoder of plain parts: a technique that left a deployed spec has no place in this layout.
        folder: an existing folder.
        extra: further values of config.json, such as the ids of special tokens.
        shard_bytes: size from which the weights are cut into several files.

    Raises:
        ModelError: no Hugging Face family says this architecture.
        StorageError: the disk refused.
    """
    family, odd = family_of(model.config)
    if family is None:
        raise ModelError(f"no Hugging Face family says this model ({odd}): write it in the native layout")
    values = {**config_to(family, model.config), "dtype": str(model.dtype).removeprefix("torch."), **extra}
    write_json(folder / "config.json", values)
    write_weights(folder, write_order(model, pieces(family, model.config)), shard_bytes)
