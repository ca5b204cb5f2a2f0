"""Limbeck's own layout: any mix of parts, our own tensor names, and the deployed specs of techniques."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.config import build
from limbeck.errors import CheckpointError, ConfigError, ModelError, nearest
from limbeck.formats.pieces import TensorPiece, check, fill, meta, places, write_order
from limbeck.formats.weights import SHARD_BYTES, WeightFiles, read_json, write_weights
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.old_names import kind_now, quiet
from limbeck.storage import write_json
from limbeck.techniques.technique import Technique, deployed

__all__ = ["MODEL_TYPE", "DEPLOYED_SPECS", "read_model", "write_model"]

MODEL_TYPE = "limbeck"
DEPLOYED_SPECS = "limbeck.json"
_VERSION = 1


def _pieces(model: nn.Module) -> list[TensorPiece]:
    return [TensorPiece(name, name, tuple(tensor.shape)) for name, tensor in places(model).items()]


def read_model(
    folder: Path,
    values: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Decoder, tuple[Technique, ...]]:
    """Load a folder of our own layout, its techniques' deployed structure rebuilt.

    Args:
        folder: where the weights lie, and ``limbeck.json`` where techniques left deployed specs.
        values: the folder's config.json.
        dtype: what the model's own weights are cast to; a tensor whose technique fixes its dtype keeps that.
        device: where they go.

    Returns:
        The decoder in evaluation mode, and the deployed specs it was rebuilt with.

    Raises:
        ModelError: a config or a technique that cannot be.
        CheckpointError: a truncated file, a missing or extra key, a shape or dtype that does not fit.
    """
    where = folder / "config.json"
    if values.get("limbeck_format") != _VERSION:
        raise ModelError(f"{where} has limbeck_format {values.get('limbeck_format')!r}: this version reads {_VERSION}")
    described = values.get("decoder")
    if not isinstance(described, dict):
        raise ModelError(f"{where} has no 'decoder' object")
    try:
        with quiet():
            config = build(DecoderConfig, described, str(where))
    except ConfigError as error:
        raise ModelError(str(error)) from None
    with quiet():
        deployed_specs = _read_deployed_specs(folder / DEPLOYED_SPECS) if (folder / DEPLOYED_SPECS).is_file() else ()
    weights = WeightFiles(folder)
    if config.layers > len(weights.headers):  # each layer has tensors of its own; do not build a million
        raise CheckpointError(f"{where} asks for {config.layers} layers, more than {weights.where} has tensors")
    model = meta(lambda: deployed(deployed_specs, Decoder(config).to(dtype)))
    assert isinstance(model, Decoder)
    check(_pieces(model), weights, lambda key: False)
    fill(model, _pieces(model), weights, device)
    return model.eval(), deployed_specs


def _read_deployed_specs(file: Path) -> tuple[Technique, ...]:
    values = read_json(file)
    listed = values.get("deployed_specs", values.get("residues"))  # the key until version 0.1
    if not isinstance(listed, list):
        raise ModelError(f"{file} holds no list of deployed specs")
    return tuple(_deployed_spec(entry, file) for entry in listed)


def _deployed_spec(entry: object, file: Path) -> Technique:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(kind, str):
        raise ModelError(f"{file} holds a deployed spec without a 'kind'")
    from limbeck.techniques.table import TECHNIQUES  # here, as the table names every technique there is

    kind = kind_now(kind)
    if kind not in TECHNIQUES:
        raise ModelError(f"{file} names the technique '{kind}', which this version has not{nearest(kind, TECHNIQUES)}")
    try:
        deployed_spec: Technique = build(TECHNIQUES[kind], {**entry, "kind": kind}, str(file))
    except ConfigError as error:
        raise ModelError(str(error)) from None
    return deployed_spec


def write_model(
    model: Decoder,
    folder: Path,
    extra: Mapping[str, Any],
    deployed_specs: Sequence[Technique] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json, safetensors in our own names and, where there are deployed specs, ``limbeck.json``.

    Args:
        model: any decoder, or what techniques made of one; ``model.config`` says the plain structure below.
        folder: an existing folder.
        extra: further values of config.json, such as the ids of special tokens.
        deployed_specs: what ``convert_all`` returned, in its order.
        shard_bytes: size from which the weights are cut into several files.

    Raises:
        StorageError: the disk refused.
    """
    values = {
        "model_type": MODEL_TYPE,
        "limbeck_format": _VERSION,
        "dtype": str(model.dtype).removeprefix("torch."),
        "decoder": model.config.model_dump(mode="json"),
        **extra,
    }
    write_json(folder / "config.json", values)
    if deployed_specs:
        write_json(folder / DEPLOYED_SPECS, {"deployed_specs": [r.model_dump(mode="json") for r in deployed_specs]})
    write_weights(folder, write_order(model, _pieces(model)), shard_bytes)
