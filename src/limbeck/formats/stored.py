"""The dtypes that a model folder stores its tensors in."""

from __future__ import annotations

from pathlib import Path

import torch

from limbeck.formats.weights import WeightFiles

__all__ = ["stored_dtype", "stored_dtypes"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtypes(folder: Path) -> dict[str, int]:
    """Return the number of tensors of each dtype in a folder or GGUF file, by its names of dtypes, such as ``F16``."""
    if folder.is_file():
        from limbeck.formats.gguf_read import stored_kinds  # here, as the gguf package takes a while to import

        return stored_kinds(folder)
    out: dict[str, int] = {}
    for header in WeightFiles(folder).headers.values():
        out[header.dtype] = out.get(header.dtype, 0) + 1
    return out


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the commonest floating dtype of a folder's weights, fp32 where it holds none."""
    counts = {k: n for k, n in stored_dtypes(folder).items() if k in _FLOATS}
    return _FLOATS[max(counts, key=counts.__getitem__)] if counts else torch.float32
