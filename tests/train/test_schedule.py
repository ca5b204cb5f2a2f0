"""Learning rates, step by step, against the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.train.schedule import cosine, factor, linear, wsd
from limbeck.train.settings import TrainSettings


def rates(total: int, **changes: Any) -> list[float]:
    settings = TrainSettings(steps=total, **changes)
    return [factor(step, total, settings) for step in range(total)]


def test_ends_of_each_shape() -> None:
    for shape in (linear, cosine, lambda p, f: wsd(p, f, 0.25)):
        assert shape(0.0, 0.1) == 1.0
        assert shape(1.0, 0.1) == pytest.approx(0.1)
    assert linear(0.5, 0.0) == 0.5
    assert cosine(0.25, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert wsd(0.75, 0.0, 0.25) == 1.0 and wsd(0.875, 0.0, 0.25) == pytest.approx(0.5)


def test_constant() -> None:
    assert rates(5, schedule="constant") == [1.0] * 5
    assert rates(5, schedule="constant", warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 0.2, 1, 5, 20])
@pytest.mark.parametrize("total", [1, 2, 20])
def test_rises_then_falls_and_wastes_no_step(schedule: str, warmup: float, total: int) -> None:
    values = rates(total, schedule=schedule, warmup=warmup)
    peak = values.index(max(values))
    assert all(a < b for a, b in zip(values[:peak], values[1 : peak + 1], strict=True))
    assert all(a >= b for a, b in zip(values[peak:], values[peak + 1 :], strict=False))
    assert max(values) == 1.0 and min(values) > 0.0


def test_cosine_is_torchs_own() -> None:
    """PyTorch's schedule after a warm-up of one step."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.1)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(12, schedule="cosine", final_fraction=0.1) == pytest.approx(expected, rel=1e-12)


def test_wsd_decays_over_its_share_of_all_steps() -> None:
    values = rates(100, schedule="wsd", warmup=10, decay_share=0.2)
    assert values[9:81] == [1.0] * 72
    assert values[80:] == pytest.approx([1 - i / 20 for i in range(20)])
    assert rates(10, schedule="wsd", warmup=5, decay_share=1.0)[4:6] == pytest.approx([1.0, 1 - 1 / 6])
