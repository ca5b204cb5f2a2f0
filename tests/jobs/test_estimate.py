"""The plan before a training, and what its first minute corrects."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from limbeck import cli
from limbeck.data.batch import Batch
from limbeck.jobs import estimate as plan
from limbeck.jobs.estimate import FirstMinute, batch_that_fits
from limbeck.jobs.recipe import Display
from limbeck.measure.cost import free_bytes, held_bytes
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.objectives.next_token import NextToken
from limbeck.train.settings import TrainSettings
from limbeck.verbs.pretrain import Pretrain

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
    session = Display(console=Console(file=out, width=200), progress=False)
    recipe = Pretrain.model_validate(
        {
            "data": "toy:stories", "limit": 40, "vocab_size": 300, "context": 32, "out": str(tmp_path / "run"),
            "architecture": {"preset": "toy", "layers": 1, "hidden_size": 16, "heads": 2, "kv_heads": 1, "context": 32},
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


class Full:
    """Micro-batches of full rows."""

    per_epoch = 10

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width

    def at(self, index: int) -> Batch:
        return Batch.of_ids(torch.zeros(self.rows, self.width, dtype=torch.int64))

    def describe(self) -> dict[str, Any]:
        return {"tokens": self.per_epoch * self.rows * self.width}


def test_the_printed_plan_is_the_hand_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens, parameters, memory, arithmetic and time of a dry run, all but what is measured, by hand."""
    monkeypatch.setattr(cli, "_hush", lambda: None)  # warnings stay errors in this process
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    shape = {"preset": "toy", "layers": 2, "hidden_size": 16, "heads": 4, "kv_heads": 2, "ffn_width": 40, "context": 32}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "corpora": {"verse": {"data": "toy:verse", "weight": 3}, "stories": {"data": "toy:stories"}},
                "shards": str(tmp_path / "shards"), "limit": 60, "vocab_size": 300, "context": 32, "batch_size": 4,
                "tokens": 100_000, "architecture": shape, "dtype": "fp32", "probes": "off", "audit": "off",
                "train": {"accumulation": 3},
            }
        )
    )  # fmt: skip
    told = ["pretrain", "--config", str(recipe), "--out", str(tmp_path / "run"), "--dry-run", "--planned-rate", "5e9"]
    assert cli.main([*told, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["expected"]
    # q and out 16 x 16, k and v 16 x 8 each; three matrices of the gated feed-forward
    matrices = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40)
    parameters = 300 * 16 + matrices + (2 * 2 + 1) * 16
    steps = -(-100_000 // (3 * 4 * 32))  # the fewest that reach the budget
    tokens = steps * 3 * 4 * 32
    forward = 2 * (matrices + 16 * 300 + 2 * 2 * 16 * 32)  # head, and scores and values of 32 positions in two layers
    assert (found["steps"], found["tokens"], found["width"]) == (steps, tokens, 32) == (261, 100_224, 32)
    assert found["parameters"] == found["trainable"] == parameters
    assert found["state_bytes"] == 4 * 4 * parameters  # weights, gradients, two moments
    assert found["flops"] == 3 * tokens * forward
    assert found["seconds"] == pytest.approx(found["flops"] / 5e9)
    assert found["tokens_per_second"] == pytest.approx(5e9 / (3 * forward))
    room = (found["free_bytes"] - 12 * parameters) * 4 // max(found["activation_bytes"], 1)
    assert found["batch_that_fits"] == pytest.approx(room, abs=1)
    shown = " ".join(said.err.split())
    verse = json.loads(said.out)["data"]["corpora"]["verse"]
    assert f"verse {verse['tokens']:,} tokens in 60 documents" in shown and "75.0% of the training tokens" in shown
    minutes = found["flops"] / 5e9 / 60
    for part in (
        "steps 261", "tokens 100,224", f"time {minutes:.1f} min", "as stated: 5e+09 FLOP/s",
        f"parameters {parameters:,}, trainable {parameters:,}", f"arithmetic {found['flops']:.3g} FLOP",
        "of weights, gradients and moments", "rows or so fit in",
    ):  # fmt: skip
        assert part in shown, (part, shown)
    assert not (tmp_path / "run").exists()


def test_the_253m_preset_on_600m_tokens() -> None:
    """System C's training: 8 rows of 1,024 tokens a step, on a device that reaches 2e14 FLOP/s."""
    with torch.device("meta"):  # arithmetic alone
        model = Decoder(Architecture(preset="253m").config(50_257))
    recipe = Pretrain.model_validate(
        {"corpora": {"c": {"data": "c"}}, "tokens": 600_000_000, "context": 1024, "batch_size": 8}
    )
    found = plan.needs(model, Full(8, 1024), recipe.settings(False))
    assert (found["steps"], found["tokens"]) == (73_243, 73_243 * 8 * 1024) and found["width"] == 1024
    assert found["parameters"] == found["trainable"] == 252_815_360
    assert found["state_bytes"] == 16 * 252_815_360
    linear = 12 * (4 * 1024**2 + 3 * 1024 * 4096) + 1024 * 50_257
    assert found["flops"] == 3 * found["tokens"] * 2 * (linear + 12 * 2 * 1024 * 1024)
    assert plan.announce(found, 0.0) == (
        "plan: 73,243 steps, 600,006,656 tokens, 1e+18 FLOP, 4,045 MB of weights, gradients and moments, "
        "252,815,360 of 252,815,360 parameters learn"
    )
    assert found["flops"] / 2e14 / 60 == pytest.approx(83.4, abs=0.05)  # minutes, as --planned-rate 2e14 tells


@pytest.mark.parametrize("rate", [None, 1e12])
def test_gradients_are_counted_once_and_a_stated_rate_times_nothing(rate: float | None) -> None:
    """A large model on a small batch: what is at work is little beside the gradients, which the state holds."""
    shape = Architecture(layers=8, hidden_size=384, heads=6, kv_heads=6, context=64)
    model = Decoder(shape.config(300))
    asked: list[int] = []

    class Counted(Full):
        def at(self, index: int) -> Batch:
            asked.append(index)
            return super().at(index)

    found = plan.expect(model, NextToken(), Counted(1, 8), TrainSettings(steps=10), 1, rate)
    gradients = 4 * model.count_parameters()
    assert found["activation_bytes"] < gradients / 2
    assert found["state_bytes"] == 4 * gradients
    assert sorted(set(asked)) == ([0, 1, 2] if rate is None else [0])
    assert all(p.grad is None for p in model.parameters())
    assert found["seconds"] > 0 and found.get("planned_rate") == rate
