"""A training verb under torchrun: several processes, one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.cli import main
from limbeck.config import build
from limbeck.data.batch import Batch
from limbeck.formats.load import load_bundle
from limbeck.jobs import estimate as plan
from limbeck.jobs import pretraining
from limbeck.run import Run
from limbeck.train.distributed import World
from limbeck.verbs.pretrain import Pretrain
from tests.reference.metrics import same_but_time
from tests.reference.tiny_runs import ARCHITECTURE, run

PRETRAIN: dict[str, Any] = {
    "corpora": {
        "stories": {"data": "toy:stories", "weight": 3, "valid": "toy:verse", "valid_limit": 5},
        "verse": {"data": "toy:verse", "weight": 1},
    },
    "limit": 60, "vocab_size": 300, "context": 32, "batch_size": 4,
    "architecture": ARCHITECTURE, "dtype": "fp32", "probes": "off",
    "measuring": {"generate": False},
    "train": {"steps": 4, "learning_rate": 3e-3, "eps": 1e-2, "log_every": 1, "evaluate_every": 2},
}  # fmt: skip


def ranks(tmp_path: Path, verb: str, values: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "limbeck"]
    return subprocess.run(
        [*command, verb, "--config", str(file), *more], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "LIMBECK_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip


def test_two_processes_pretrain_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    train = {**PRETRAIN["train"], "accumulation": 2}
    alone = {**PRETRAIN, "train": train, "shards": str(tmp_path / "alone-shards")}
    found = run("pretrain", out=str(tmp_path / "alone"), **alone)
    both = {**PRETRAIN, "shards": str(tmp_path / "shards"), "out": str(tmp_path / "both")}
    done = ranks(tmp_path, "pretrain", both, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()  # one of them speaks
    report = json.loads(line)
    assert report["training"]["real_tokens"] == found["training"]["real_tokens"]
    assert report["metrics"]["nats per token"]["value"] == pytest.approx(
        found["metrics"]["nats per token"]["value"], rel=1e-5
    )
    one, two = (Run.open(tmp_path / name).metrics() for name in ("alone", "both"))
    assert len(one) == len(two) and done.stderr.count("plan: 4 steps") == 1
    for ours, theirs in zip(one, two, strict=True):
        assert same_but_time(theirs) == pytest.approx(same_but_time(ours), rel=1e-5, abs=1e-5)
    ours, theirs = (load_bundle(str(tmp_path / name)).model.state_dict() for name in ("alone", "both"))
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-5
    again = ranks(tmp_path, "pretrain", both)
    assert again.returncode == 0 and " ".join(again.stderr.split()).count("is finished") == 1


def test_a_budget_of_tokens_and_its_plan_do_not_know_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.reference.small_model import decoder

    class Full:
        per_epoch = 7

        def at(self, index: int) -> Any:
            return Batch.of_ids(torch.zeros(4, 32, dtype=torch.int64))

        def describe(self) -> dict[str, Any]:
            return {"tokens": 7 * 4 * 32}

    told = []
    for size in (1, 2, 4):
        for module in (plan, pretraining):
            monkeypatch.setattr(module, "world", lambda n=size: World(size=n))
        recipe = build(Pretrain, {**PRETRAIN, "tokens": 9_000, "train": {"accumulation": 4 // size}})
        told.append(plan.needs(decoder(), Full(), recipe.settings(False)))
    assert told[0] == told[1] == told[2]
    assert told[0]["steps"] == 18 and told[0]["tokens"] == 18 * 4 * 4 * 32  # the fewest steps that reach 9,000


def test_an_error_of_the_first_is_told_and_ends_both(tmp_path: Path) -> None:
    corpora = {"verse": {"data": "toy:verse", "valid": "toy:verse"}}
    values = {**PRETRAIN, "corpora": corpora, "audit": "refuse", "shards": str(tmp_path / "shards")}
    done = ranks(tmp_path, "pretrain", {**values, "out": str(tmp_path / "run")})
    assert done.returncode != 0 and "overlap with evaluation rows" in done.stderr
    assert not (tmp_path / "run").exists()


def test_other_verbs_are_for_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["audit", "toy:verse", "--within"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
