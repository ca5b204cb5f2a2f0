"""The rate of this machine's matrix products: the limit that a training's rate is held against."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

import torch

from limbeck.run import machine
from limbeck.storage import write_json

__all__ = ["matmul_rate"]

_SIZE = 1024
_REPEATS = 7


def matmul_rate(dtype: torch.dtype, device: torch.device, *, cache: Path | None = None) -> float:
    """Return FLOP/s of a square matrix product (1,024, median of 7), measured once for a machine, its threads and a
    dtype.

    Args:
        dtype: of both factors.
        device: where.
        cache: file of earlier measurements; None: ``limits.json`` in ``$LIMBECK_CACHE``, else ``~/.cache/limbeck``.
    """
    folder = Path(os.environ.get("LIMBECK_CACHE", "~/.cache/limbeck")).expanduser()
    file = folder / "limits.json" if cache is None else cache
    known: dict[str, float] = {}
    try:
        known = {str(k): float(v) for k, v in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        pass  # nothing was measured yet, or what stands there is of no use: it is measured and written anew
    here = machine()
    key = f"{here['cpu']}, {here.get('threads')} threads, {here['gpus']}, {device.type}, {dtype}"
    if key not in known:
        known[key] = _measured(dtype, device)
        write_json(file, known)
    return known[key]


def _measured(dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.ones(_SIZE, _SIZE, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        del c
    return 2 * _SIZE**3 / statistics.median(seconds[1:])
