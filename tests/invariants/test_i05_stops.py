"""I5: a model trained on instructions stops; its replica trained without the end token does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reference.tiny_runs import run

ARCHITECTURE = {"preset": "toy", "layers": 2, "hidden_size": 48, "heads": 2, "kv_heads": 2, "context": 160}
COMMON: dict[str, Any] = {
    "data": "toy:instructions", "limit": 300, "dtype": "fp32", "probes": "off", "audit": "off", "batch_size": 16,
    "measuring": {"batch_size": 32},
}  # fmt: skip
SILENT = {"generate": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("m") / "base"
    stories = {"data": "toy:stories", "limit": 60, "vocab_size": 320, "architecture": ARCHITECTURE, "context": 160}
    run("pretrain", **{**COMMON, **stories, "out": str(folder), "train": {"steps": 2}, "measuring": SILENT})
    return str(folder)


def rates(base: str, folder: Path, **task: Any) -> dict[str, float]:
    training = {"steps": 80, "learning_rate": 4e-3, "log_every": 40, "evaluate_first": False}
    task = {"kind": "instructions", **task}
    trained = {**COMMON, "model": base, "task": task, "packing": True, "train": training, "measuring": SILENT}
    run("finetune", **{**trained, "out": str(folder)})
    told = run("evaluate", **{
        **{k: v for k, v in COMMON.items() if k not in ("audit", "batch_size")},
        "model": str(folder), "part": "test", "task": {"kind": "instructions"},
    })  # fmt: skip
    assert told["protocol"]["decoding"]["temperature"] == 0.7 and told["protocol"]["limit_tokens"] <= 80
    return {name: m["value"] for name, m in told["metrics"].items()}


def test_the_trained_model_stops_and_the_replica_without_the_end_token_does_not(base: str, tmp_path: Path) -> None:
    stops, endless = rates(base, tmp_path / "stops"), rates(base, tmp_path / "endless", end=False)
    assert stops["stop rate, sampled"] >= 0.9
    assert endless["stop rate, sampled"] <= 0.1 and endless["stop rate, greedy"] <= 0.1
    assert endless["length ratio, sampled"] > 1.5 * stops["length ratio, sampled"]
