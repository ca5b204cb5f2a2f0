"""What llama.cpp itself makes of a GGUF file, where llama-cpp-python can be imported."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.errors import RunError

__all__ = ["llama_cpp_logits", "llama_cpp_version"]

_PACKAGE = "llama_cpp"


def llama_cpp_version() -> str | None:
    """Return the version of llama-cpp-python; None where it cannot be imported."""
    if find_spec(_PACKAGE) is None:
        return None
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "unknown"


def llama_cpp_logits(file: Path, batch: Batch) -> Tensor:
    """Return (B, T, V) logits of llama.cpp on the CPU, its cache in F16 and activations rounded as its kernels do.

    Args:
        file: GGUF.
        batch: rows without padding, evaluated one after another.

    Raises:
        RunError: llama.cpp does not open the file.
    """
    llama_cpp = importlib.import_module(_PACKAGE)
    rows = batch.ids.tolist()
    length = len(rows[0])
    try:
        llama = llama_cpp.Llama(
            str(file), n_ctx=length, n_batch=length, n_threads=torch.get_num_threads(), logits_all=True, verbose=False
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(f"llama.cpp does not open {file}: {' '.join(str(error).split())}: do not use it") from None
    found = []
    for ids in rows:
        llama.reset()
        llama.eval(ids)
        found.append(torch.from_numpy(llama.scores[:length].copy()))
    llama.close()
    return torch.stack(found)
