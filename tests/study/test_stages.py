from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean
from limbeck.measure.stats import compare
from limbeck.study.plan import StudyPlan
from limbeck.study.stages import standing
from limbeck.study.study import run_plan
from tests.reference.tiny_runs import PRETRAIN

PLAN: dict[str, Any] = {
    "common": {"probes": "off"},  # of the trainings
    "arms": {
        "base": {"verb": "pretrain", "once": True, "values": PRETRAIN},
        "tuned": {
            "verb": "finetune", "once": True,
            "values": {**{k: PRETRAIN[k] for k in ("limit", "dtype", "measuring")}, "model": "@base",
                       "data": "toy:verse", "train": {"steps": 8, "learning_rate": 1e-2}},
        },
    },
    "models": {"1 base": "@base", "2 tuned": "@tuned"},
    "figures": {
        name: {"values": {"data": f"toy:{name}", "limit": 12, "measuring": PRETRAIN["measuring"], **more},
               "metric": ["nats per token", "nats per byte"], "margin": 0.01}
        for name, more in (("stories", {}), ("verse", {"base": "@base", "probes": "quick"}))
    },
}  # fmt: skip


def test_stages_come_out_as_one_table_with_changes_and_cost(tmp_path: Path) -> None:
    found = run_plan(build(StudyPlan, PLAN, "a test"), tmp_path, Display.silent()).values
    told = {s["figure"]: s for s in found["stages"] if s["metric"] == "nats per token"}
    assert len(found["stages"]) == 4
    assert told["verse"]["standing"] == "exceeds" and told["verse"]["first"] == "2 tuned"
    for name, one in told.items():
        a, b = (found["arms"][f"{m}:{name}"]["runs"][0]["metrics"]["nats per token"]["value"]
                for m in PLAN["models"])  # fmt: skip
        assert (one["a"], one["b"]) == pytest.approx((a, b))
    table = (tmp_path / "stages.md").read_text().splitlines()
    assert table[2].startswith("| model | stories: nats per token") and table[4].startswith("| 1 base |")
    tokens = found["arms"]["tuned"]["runs"][0]["training"]["real_tokens"]
    assert "change" not in table[4] and table[5].count("change") == 4 and f"{tokens:,}" in table[5]
    assert any("| verse: nats per byte | 2 tuned | 1 base | exceeds |" in line for line in table)
    alarms = {a["name"]: a for a in found["arms"]["2 tuned:verse"]["runs"][0]["alarms"]}
    assert alarms
    for name, alarm in alarms.items():
        (line,) = (line for line in table if line.startswith(f"| verse: {name} |"))
        assert f"{alarm['value']:.3g}" in line and ("fired" in line.split("|")[3]) == alarm["fired"]
    page = (tmp_path / "study.html").read_text()
    for heading in ("Stage by stage", "Probes", "Who matches, exceeds or lags whom"):
        assert f"## {heading}" in table and f"<h2>{heading}</h2>" in page


def test_a_study_without_models_writes_no_stage_table() -> None:
    for part in ("models", "figures"):
        with pytest.raises(ConfigError, match="both 'models' and 'figures'"):
            build(StudyPlan, {k: v for k, v in PLAN.items() if k != part}, "a test")


def test_a_model_may_come_after_another_than_the_one_above(tmp_path: Path) -> None:
    models = {"base": "@base", "tuned": "@tuned", "again": {"model": "@tuned", "after": "base"}}
    values = {**PLAN, "models": models, "figures": {"verse": PLAN["figures"]["verse"]}}
    run_plan(build(StudyPlan, values, "a test"), tmp_path, Display.silent())
    table = (tmp_path / "stages.md").read_text().splitlines()
    tuned, again = table[5], table[6]
    assert tuned.startswith("| tuned |") and "change from" not in tuned
    assert again.count("change from base ") == 2
    assert again.replace("change from base ", "change ").split("|")[2:4] == tuned.split("|")[2:4]
    for after in ("tuned", "nobody"):
        wrong = {**values, "models": {"tuned": {"model": "@tuned", "after": after}, "base": "@base"}}
        with pytest.raises(ConfigError, match=f"come after '{after}', which is no model above it"):
            build(StudyPlan, wrong, "a test")


@pytest.mark.parametrize(
    ("shift", "margin", "expected"),
    [(1.0, 0.1, "exceeds"), (-1.0, 0.1, "lags"), (0.001, 0.5, "matches"), (0.001, None, "undecided"),
     (0.001, 1e-9, "undecided"), (0.2, 0.5, "matches")],
)  # fmt: skip
def test_standing(shift: float, margin: float | None, expected: str) -> None:
    random = np.random.default_rng(0)
    ids = [str(i) for i in range(200)]
    before, noise = random.normal(size=200), random.normal(size=200) * 0.3
    noise -= noise.mean()
    a, b = Scores.of(ids, x=before), Scores.of(ids, x=before + noise + shift)
    assert standing(compare(a, b, mean("x", better="higher"), resamples=500), margin) == expected
