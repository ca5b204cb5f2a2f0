"""The ablations of the architecture, as ``studies/ablations.yaml`` has them, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.config import build, merge
from limbeck.recipes.recipe import Session
from limbeck.study.plan import StudyPlan
from limbeck.study.study import run_plan

STUDY = Path(__file__).parents[2] / "studies" / "ablations.yaml"
SHAPE = {"preset": "toy", "layers": 2, "width": 32, "heads": 4, "context": 64, "parameters": 40_000}


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    plan = yaml.safe_load(STUDY.read_text())
    corpora = {"stories": {"data": "toy:stories", "weight": 0.7, "valid": "toy:verse", "valid_limit": 8}}
    corpora["verse"] = {"data": "toy:verse", "weight": 0.3}
    plan["common"] |= {
        "dtype": "fp32", "corpora": corpora, "vocab_size": 300, "context": 64, "batch_size": 4, "tokens": 2_048,
    }  # fmt: skip
    plan["seeds"] = [0, 1]
    for arm in plan["arms"].values():
        own = arm["values"]["architecture"]
        arm["values"]["architecture"] = merge(own, SHAPE)
    return plan


def test_parts_are_worth_nats_at_equal_parameters(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the shards' folder is named relative
    found = run_plan(build(StudyPlan, small, "a test"), tmp_path / "out", Session.silent()).values
    assert set(found["arms"]) == {"modern", "learned", "layernorm", "gelu", "grouped", "untied"}
    for arm in found["arms"].values():
        assert [r["training"]["real_tokens"] for r in arm["runs"]] == [2_048] * 2
        assert all(abs(r["cost"]["parameters"] / 40_000 - 1) <= 0.01 for r in arm["runs"])
    starts = {name: arm["runs"][0]["metrics"]["nats per token"]["value"] for name, arm in found["arms"].items()}
    assert len(set(starts.values())) == 6  # no variant is another one
    assert len(found["comparisons"]) == 5
    for one in found["comparisons"]:
        assert one["second"] == "modern" and one["low"] <= one["difference"] <= one["high"]
        b, a = starts[one["first"]], starts["modern"]
        assert one["difference"] == pytest.approx(b - a, abs=0.3)  # the first seed's stands for both
    table = (tmp_path / "out" / "study.md").read_text()
    assert "| parameters |" in table and "head not tied" in table
