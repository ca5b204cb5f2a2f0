"""A model with its tokenizer and generation settings from one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.families.table import config_from, pieces
from limbeck.formats.gguf_config import values_of
from limbeck.formats.gguf_file import GgufFile
from limbeck.formats.gguf_vocabulary import end_ids, read_tokenizer
from limbeck.formats.gguf_weights import GgufWeights, by_parameter
from limbeck.formats.pieces import TensorPiece, check, fill, meta
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import Technique

_BUFFERS = (".codes", ".scales", ".zeros")

__all__ = ["FromGguf", "read_gguf", "stored_kinds"]


class FromGguf(NamedTuple):
    """What a file holds.

    Attributes:
        model: the decoder, in evaluation mode.
        tokenizer: its tokenizer.
        generation: ids of special tokens, as generation_config.json has them.
        deployed: the techniques whose deployed structure the model has: the grids of weights kept as codes.
    """

    model: Decoder
    tokenizer: Tokenizer
    generation: dict[str, Any]
    deployed: tuple[Technique, ...]


def read_gguf(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    keep_codes: bool = False,
) -> FromGguf:
    """Load a file, a few rows at a time: beside the model no whole tensor is held.

    Args:
        path: the file.
        dtype: what the weights are cast to, whatever the file holds.
        device: where they go.
        keep_codes: keep matrices in Q8_0, Q4_0 and Q4_1 as codes on Limbeck's grids of these names, bit for bit;
            matrices in other types, and those whose parts are in several, are decoded.

    Raises:
        ModelError: an architecture, a setting or a tokenizer that is not supported.
        CheckpointError: the file is damaged, or its tensors are not those of its settings.
    """
    file = GgufFile(path)
    values = values_of(file)
    family, config = config_from({k: v for k, v in values.items() if v is not None}, str(path))
    tokenizer = read_tokenizer(file)
    weights = GgufWeights(file, config, pieces(family, config))
    check(pieces(family, config), weights, lambda key: False)
    every = list(pieces(family, config))
    plan = _plan(weights, config, every) if keep_codes else None
    if plan is None:
        model = meta(lambda: Decoder(config).to(dtype))
        fill(model, every, weights, device)
    else:
        model = meta(lambda: plan.deployed_skeleton(Decoder(config).to(dtype)))
        coded = _coded(model)
        plain = [p for p in every if p.name not in coded]
        fill(model, plain, weights, device, later=lambda name: name.endswith(_BUFFERS))
        _fill_codes(coded, every, weights, device)
    assert isinstance(model, Decoder)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": end_ids(file), "pad_token_id": tokenizer.pad_id}
    deployed = () if plan is None else (plan,)
    return FromGguf(model.eval(), tokenizer, {k: v for k, v in generation.items() if v is not None}, deployed)


def _plan(weights: GgufWeights, config: DecoderConfig, every: list[TensorPiece]) -> RTN | None:
    """Grids of the matrices that can stay codes, as the technique that rebuilds them; None where there is none."""
    with torch.device("meta"):
        plain = dict(Decoder(config).named_modules())
    found: dict[str, Grid | None] = {}
    for name, group in by_parameter(every):
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and isinstance(plain[owner], nn.Linear | nn.Embedding):
            grid = weights.grid(group)
            found[owner] = None if grid is None else Grid.model_validate({"format": grid})
    grids = [g for g in found.values() if g is not None]
    if not grids:
        return None
    commonest = max(grids, key=grids.count)
    usual = {"positions": None}
    overrides = {name: grid for name, grid in found.items() if grid != usual.get(name, commonest)}
    return RTN(grid=commonest, overrides=overrides)


def _coded(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Parameters that are codes: the plain parameter's name -> its codes; a tied head is its embedding."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding) or (isinstance(module, QuantizedLinear) and not module.borrowed):
            found[f"{name}.weight"] = module.quantized
    return found


def _fill_codes(
    coded: dict[str, QuantizedWeight], every: list[TensorPiece], weights: GgufWeights, device: torch.device | str
) -> None:
    for name, group in by_parameter(every):
        if name in coded:
            codes = coded[name].layout.empty("cpu")
            weights.codes(group, codes)
            coded[name].take_codes(codes, device)


def stored_kinds(path: Path) -> dict[str, int]:
    """Return the number of tensors of each type in a file, by ggml's names such as ``Q4_1``."""
    kinds = [tensor.kind.name for tensor in GgufFile(path).tensors.values()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
