"""The plan before a training, and what its first minute corrects."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from limbeck.measure.cost import free_bytes, held_bytes
from limbeck.recipes import plan
from limbeck.recipes.plan import FirstMinute, batch_that_fits
from limbeck.recipes.pretrain import Pretrain
from limbeck.recipes.recipe import Session

NEEDED = {"steps": 100, "tokens": 50_000, "trainable": 10}


def test_batch_that_fits() -> None:
    assert batch_that_fits(8, 800, 100, 1000) == 9  # 100 bytes a row beside 100 of state
    assert batch_that_fits(8, 800, 100, 199) == 0
    assert batch_that_fits(8, 800, 300, 200) == 0  # not even the state


def test_the_rate_and_the_time_left_are_told_once() -> None:
    at, told = [0.0], list[str]()
    minute = FirstMinute(NEEDED, 4, torch.device("cpu"), told.append, clock=lambda: at[0])
    for step in range(1, 90):
        minute(step, {})
        at[0] += 2.0
    # 500 tokens a step in 2 s; told after step 31, 60 s after step 1: 69 steps are left
    (line,) = told
    assert line.startswith("measured: 250 tokens/s, 2.3 min left")


@pytest.mark.parametrize(("grown", "told"), [(1_000, True), (100, False)])
def test_a_batch_is_told_where_memory_grew(grown: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    at, said = [0.0], list[str]()
    monkeypatch.setattr(plan, "held_bytes", lambda _: 5_000)
    monkeypatch.setattr(plan, "free_bytes", lambda _: 10_000)
    monkeypatch.setattr(plan, "peak_memory_bytes", lambda _: 5_000 + grown)
    minute = FirstMinute(NEEDED, 4, torch.device("cpu"), said.append, clock=lambda: at[0])
    for step in range(1, 40):
        minute(step, {})
        at[0] += 2.0
    # 120 bytes of gradients and moments for the ten that learn; 880 for four rows, of 9,880 that are left
    assert ("a micro-batch of about 44 rows would fit (now 4)" in said[0]) == told
    assert ("memory grew" in said[0]) == told


def test_memory_is_told_by_the_kernel() -> None:
    assert 1e7 < held_bytes() < 1e12
    assert free_bytes() > 0


@pytest.mark.parametrize("dry", [True, False])
def test_every_start_prints_its_plan(dry: bool, tmp_path: Path) -> None:
    out = io.StringIO()
    session = Session(console=Console(file=out, width=200), progress=False)
    recipe = Pretrain.model_validate(
        {
            "data": "toy:stories", "limit": 40, "vocab_size": 300, "context": 32, "out": str(tmp_path / "run"),
            "architecture": {"preset": "toy", "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 32},
            "train": {"steps": 2}, "batch_size": 2, "dtype": "fp32", "probes": "off", "dry_run": dry,
            "measuring": {"generate": False},
        }
    )  # fmt: skip
    report = recipe.run(session)
    if dry:
        expected = report.values["expected"]
        assert expected["batch_that_fits"] > 2
        assert expected["flops"] > 0 and expected["steps"] == 2
    else:
        assert "plan: 2 steps, " in out.getvalue()
        assert "at this device's limit" in out.getvalue()
