from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.measure import limit


def test_it_is_measured_once_for_a_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_SIZE", 32)
    file, cpu = tmp_path / "limits.json", torch.device("cpu")
    first = limit.matmul_rate(torch.float32, cpu, cache=file)
    assert first > 0
    monkeypatch.setattr(limit, "_measured", lambda *_: 7.0)
    assert limit.matmul_rate(torch.float32, cpu, cache=file) == first
    assert limit.matmul_rate(torch.float64, cpu, cache=file) == 7.0
    file.write_text("[broken")
    assert limit.matmul_rate(torch.float32, cpu, cache=file) == 7.0
