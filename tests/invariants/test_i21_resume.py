"""I21: killed at any step and resumed, a run ends with bit-equal weights, optimizer, metrics and data order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.run import Run
from limbeck.train.checkpoint import Checkpoints
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings
from tests.reference.metrics import same_but_time
from tests.reference.resumable import STEPS, fit
from tests.reference.training import PlainNextToken, Random, same, tiny

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Like SIGKILL, nothing in the loop can hold it."""


def killing(at: int) -> Any:
    def on_step(step: int, _: Mapping[str, float]) -> None:
        if step == at:
            raise Killed

    return on_step


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [same_but_time(line) for line in metrics]


def last(folder: Path, name: str) -> dict[str, torch.Tensor]:
    newest = Checkpoints(folder / "checkpoints").pointer("last")
    assert newest is not None
    return load_file(newest / name)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("at", [1, 3, 4, 5, 7, 9, 12])
def test_killed_after_any_step_it_ends_bit_equal(precision: str, at: int, tmp_path: Path) -> None:
    order: list[int] = []
    weights, result, metrics = fit(tmp_path / "whole", precision, seen=order)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", precision, killing(at))
    again_order: list[int] = []
    again, resumed, again_metrics = fit(tmp_path / "cut", precision, seen=again_order)
    assert same(weights, again)
    assert timeless(metrics) == timeless(again_metrics)
    assert resumed.resumed_from == max(s for s in (0, 3, 4, 6, 8, 9) if s < at)
    assert again_order == order[2 * resumed.resumed_from :]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert same(last(tmp_path / "whole", name), last(tmp_path / "cut", name))
    facts = ("steps", "stopped", "best_step", "best_value", "weights_step", "real_tokens", "target_tokens")
    assert [getattr(result, f) for f in facts] == [getattr(resumed, f) for f in facts]


def test_killed_many_times_it_still_ends_bit_equal(tmp_path: Path) -> None:
    weights, _, metrics = fit(tmp_path / "whole")
    for at in (2, 5, 5, 7, 10, 12):
        with pytest.raises(Killed):
            fit(tmp_path / "cut", on_step=killing(at))
    again, _, again_metrics = fit(tmp_path / "cut")
    assert same(weights, again)
    assert timeless(metrics) == timeless(again_metrics)


@pytest.mark.slow
def test_a_killed_process_resumes(tmp_path: Path) -> None:
    """A real SIGKILL at a moment nobody chose."""
    weights, _, metrics = fit(tmp_path / "whole")
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.reference.resumable", str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not (folder / "checkpoints" / "step-00000004").exists() and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again, resumed, again_metrics = fit(folder)
    assert resumed.resumed_from is not None and 4 <= resumed.resumed_from < STEPS
    assert same(weights, again)
    assert timeless(metrics) == timeless(again_metrics)


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(tiny_with(before), PlainNextToken(), Random(), TrainSettings(steps=2, precision="auto"), progress=False)
    assert torch.equal(before, torch.get_rng_state())


def tiny_with(state: torch.Tensor) -> Any:
    model = tiny(dropout=0.1)
    torch.set_rng_state(state)
    return model


@pytest.mark.parametrize("changes", [{"evaluate_every": 1}, {"evaluate_first": False}, {"checkpoint_every": 1}])
def test_what_is_measured_or_saved_changes_no_weight(changes: dict[str, Any], tmp_path: Path) -> None:
    usual, _, _ = fit(tmp_path / "usual", restore_best=False, patience=0)
    other, _, _ = fit(tmp_path / "other", restore_best=False, patience=0, **changes)
    assert same(usual, other)


def test_a_finished_training_trains_no_more(tmp_path: Path) -> None:
    weights, result, metrics = fit(tmp_path / "run")
    seen: list[int] = []
    again, repeated, again_metrics = fit(tmp_path / "run", seen=seen)
    assert seen == []
    assert same(weights, again)
    assert metrics == again_metrics
    assert (repeated.resumed_from, repeated.best_step) == (result.steps, result.best_step)


def test_it_goes_on_in_the_precision_that_was_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.loop.emulates_bf16", lambda _: False)
    with pytest.raises(Killed):
        fit(tmp_path / "run", "auto", killing(4))
    timed = [line for line in Run.open(tmp_path / "run").metrics() if "fp32_step_seconds" in line]
    assert len(timed) == 1 and timed[0]["step"] == 0
    chosen = min(("fp32", "bf16"), key=lambda p: timed[0][f"{p}_step_seconds"])
    monkeypatch.setattr("limbeck.train.loop.fastest", lambda *_: pytest.fail("it was measured again"))
    _, resumed, metrics = fit(tmp_path / "run", "auto")
    assert resumed.precision == chosen
    assert metrics[0] == timed[0]
