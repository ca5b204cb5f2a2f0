"""Reference log-probabilities in a file: computed once, found by row and tokens, refused where they are stale."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.batch import PairBatch
from limbeck.errors import CheckpointError, DataError
from limbeck.formats.weights import read_json
from limbeck.objectives.reference import LogProbs, Stored, pair_log_probs
from limbeck.storage import write_json

__all__ = ["read_reference", "write_reference"]

_FORMAT = "limbeck-reference-1"


@torch.no_grad()
def write_reference(
    model: nn.Module, fingerprint: str, batches: Iterable[PairBatch], file: Path, device: torch.device | str = "cpu"
) -> None:
    """Ask ``model``, in evaluation mode, about every pair once and write what it says.

    Args:
        model: the reference; its mode is left as it was.
        fingerprint: of its weights.
        batches: the pairs.
        file: replaced as a whole.
        device: of the model.

    Raises:
        StorageError: the disk refused.
    """
    modes = {module: module.training for module in model.modules()}
    pairs: dict[str, LogProbs] = {}
    model.eval()
    try:
        for batch in batches:
            found = pair_log_probs(model, batch.to(device)).double().cpu().tolist()
            pairs |= {key: (chosen, rejected) for key, (chosen, rejected) in zip(batch.keys, found, strict=True)}
    finally:
        for module, mode in modes.items():
            module.training = mode
    write_json(file, {"format": _FORMAT, "model": fingerprint, "pairs": pairs})


def read_reference(file: Path, fingerprint: str, keys: Iterable[str]) -> Stored:
    """Read what ``write_reference`` wrote, for pairs with these ``keys``.

    Raises:
        DataError: it is stale: of another model, or without one of the pairs as it reads now.
        CheckpointError: the file holds something else.
        ModelError: it is no JSON.
    """
    values = read_json(file)
    pairs = values.get("pairs")
    if values.get("format") != _FORMAT or not isinstance(pairs, dict) or not all(map(_is_pair, pairs.values())):
        raise CheckpointError(f"{file} holds no reference log-probabilities: remove it, and they are computed again")
    if values.get("model") != fingerprint:
        raise DataError(
            f"the reference log-probabilities in {file} are stale: they are of another model than this training starts "
            "from; remove the file, or name another"
        )
    for key in keys:
        if key not in pairs:
            raise DataError(
                f"the reference log-probabilities in {file} are stale: row {key.rpartition('#')[0]} is not among them,"
                " or its tokens have changed since; remove the file, or name another"
            )
    return Stored({key: (float(a), float(b)) for key, (a, b) in pairs.items()}, str(file))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, int | float) for x in value)
