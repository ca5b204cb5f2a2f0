"""I22: two processes equal one, DDP and FSDP2: global gradients and loss traces to fp32 rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.train.distributed import World
from tests.reference import ranks
from tests.reference.metrics import same_but_time

ROOT = Path(__file__).parents[2]


def some_ranks(kind: str, folder: Path, count: int = 2) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, "-m", "tests.reference.ranks", kind, str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"outcome-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("ddp", 2e-6), ("fsdp", 2e-6), ("bf16", 2e-2), ("fsdp_bf16", 2e-2), ("dpo", 2e-6)]
)
def test_two_processes_equal_one(kind: str, tolerance: float, tmp_path: Path) -> None:
    reference = "bf16" if kind.endswith("bf16") else kind if kind == "dpo" else "ddp"
    one = ranks.observe(reference, tmp_path / "one", World())
    first, second = some_ranks(kind, tmp_path / "two")
    assert len(one["gradients"]) == len(first["gradients"]) == ranks.STEPS
    for mine, theirs, others in zip(one["gradients"], first["gradients"], second["gradients"], strict=True):
        norm = torch.stack([g.norm() for g in mine]).norm()
        assert norm > 0.01  # the gradients are there to be compared
        for a, b, c in zip(mine, theirs, others, strict=True):
            assert (a - b).norm() <= tolerance * norm
            assert torch.equal(b, c)
    for ours, theirs in zip(one["metrics"], first["metrics"], strict=True):
        ours, theirs = same_but_time(ours), same_but_time(theirs)
        assert ours.keys() == theirs.keys()
        assert theirs == pytest.approx(ours, rel=tolerance, abs=tolerance)
    assert first["real_tokens"] == one["real_tokens"]
    start = dict(ranks.parts(kind)[0].named_parameters())
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
        assert value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float())
        if not start[name].requires_grad:
            continue
        moved = (one["weights"][name] - start[name]).norm()
        assert moved > 0 and (value - one["weights"][name]).norm() <= 20 * tolerance * moved


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_ranks_takes_one_order(count: int, tmp_path: Path) -> None:
    """What the ranks take, in turn, is what one takes: corpora mixed, rows plain, packed and bucketed."""
    alone = ranks.order(tmp_path / "one", World())
    found = some_ranks("order", tmp_path / "some", count)
    for name, one in alone.items():
        assert [index for index, *_ in one["taken"]] == list(range(len(one["taken"])))
        shared = [rank[name]["taken"] for rank in found]
        assert [taken for turn in zip(*shared, strict=True) for taken in turn] == one["taken"]
        assert len(one["losses"]) == len(one["taken"]) / 4  # steps, as few as with one rank
        assert name == "mixture" or len(one["taken"]) > one["per_epoch"]  # over an epoch's border
        for rank in found:
            assert rank[name]["losses"] == pytest.approx(one["losses"], rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_killed_processes_resume_to_the_same_end(kind: str, tmp_path: Path) -> None:
    for outcome in some_ranks(kind, tmp_path):
        assert outcome["resumed_alike"]
        whole = [same_but_time(line) for line in outcome["metrics"]]
        assert [same_but_time(line) for line in outcome["resumed_metrics"]] == whole


@pytest.mark.slow
def test_a_signal_or_an_error_on_one_rank_ends_both(tmp_path: Path) -> None:
    first, second = some_ranks("failures", tmp_path)
    assert "stopped after step 2 of 4" in first["stopped"]
    assert first["stopped"] == second["stopped"]
    assert first["sentences"][1] == "StorageError: the disk is full"
    assert second["sentences"] == ["StorageError: the disk is full", "RunError: rank 0 stopped: the disk is full"]
