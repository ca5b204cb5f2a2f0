"""Reading a safetensors folder tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.formats.weights import WeightFiles, write_weights

STATUS = Path("/proc/self/status")


def file_bytes() -> int:
    """Bytes of mapped files that are in memory."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.exists() or "RssFile" not in STATUS.read_text(), reason="Linux tells it")
def test_pages_of_a_tensor_that_was_read_do_not_stay(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((1 << 20,), float(i)) for i in range(16)}  # 4 MiB each
    write_weights(tmp_path, tensors.items())
    weights = WeightFiles(tmp_path)
    before = file_bytes()
    for name, tensor in tensors.items():
        assert torch.equal(weights.read(name), tensor)
    assert file_bytes() - before < 16 << 20  # all of them are 64 MiB
