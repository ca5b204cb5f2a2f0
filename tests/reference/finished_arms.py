"""Arms of a study as they look when they have run, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, ratio

NATS = ratio("nll", "tokens", name="nats per token", better="lower", unit="nats/token")
SPEED = {
    "decode_ms_per_token": 1.2,
    "decode_ms_fastest": 1.1,
    "decode_ms_slowest": 1.6,
    "protocol": {"repeats": 5},
    "dtype": "float32",
    "device": "cpu",
}


@dataclass(frozen=True)
class Arm:
    """What ``table.Row`` asks for."""

    name: str
    label: str
    reports: Sequence[Mapping[str, Any]]
    scores: Sequence[Scores]
    statistics: tuple[Statistic, ...] = (NATS,)


def arm(
    name: str,
    mean: float,
    *,
    label: str = "",
    seeds: int = 1,
    items: int = 60,
    spread: float = 0.1,
    data: str = "a" * 64,
    source: str = "toy:stories[test]",
    disk_bytes: int | None = 790_000,
    ms: tuple[float, float, float] | None = (1.2, 1.1, 1.6),
    trained: bool = True,
    folder: Path | None = None,
    statistics: tuple[Statistic, ...] = (NATS,),
    **more: Any,
) -> Arm:
    """An arm whose items have ``mean`` nats a token, give or take ``spread``; items of all arms are alike hard."""
    hard = np.random.default_rng(0).normal(size=items)
    reports, scores = [], []
    for seed in range(seeds):
        noise = np.random.default_rng([seed, sum(map(ord, name))]).normal(size=items)
        tokens = np.full(items, 10.0)
        nll = tokens * (mean + 0.2 * hard + spread * noise)
        scores.append(Scores.of([f"{data[:4]}:{i}" for i in range(items)], nll=nll, tokens=tokens))
        cost: dict[str, Any] = {"parameters": 791_680, "trainable": 73_984}
        if disk_bytes is not None:
            cost["disk_bytes"] = disk_bytes
        if ms is not None:
            keys = ("decode_ms_per_token", "decode_ms_fastest", "decode_ms_slowest")
            cost["speed"] = SPEED | dict(zip(keys, ms, strict=True))
        report: dict[str, Any] = {
            "verb": "finetune" if trained else "evaluate",
            "evaluated": "test",
            "data": {"test": {"source": source, "hash": data, "rows": items}, "encoding": {"rows": items}},
            "cost": cost,
        }
        if trained:
            report["training"] = {"steps": 2, "real_tokens": 1234, "precision": "fp32", "seconds": 10.0 + seed}
        if folder is not None:
            report["run"] = str(folder / name / f"seed-{seed}")
        reports.append(report | more)
    return Arm(name, label or name, reports, scores, statistics)


def write_run(report: Mapping[str, Any], *, seed: int = 0, lines: Sequence[Mapping[str, Any]] = ()) -> None:
    """The files of a run that a page reads."""
    path = Path(report["run"])
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    provenance = {
        "seed": seed,
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "source": {"commit": "0123456789abcdef", "changed": True},
        "machine": {"cpu": "some processor", "cores": 2},
    }
    (path / "provenance.json").write_text(json.dumps(provenance))
