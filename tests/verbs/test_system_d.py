"""System D: the shipped study's settings, early stopping, and test rows that nothing learns from before the end."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.data.toy.table import toy_rows
from limbeck.formats.load import load_bundle
from limbeck.study.plan import StudyPlan
from limbeck.study.study import read_plan
from limbeck.tasks.qa import QuestionAnswering
from tests.reference.small_model import saved
from tests.reference.tiny_runs import run

STUDY = Path(__file__).parents[2] / "studies" / "system-d.yaml"


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    rows = toy_rows("qa", size=40).rows
    return [{"question": r.fields["question"], "answer": r.fields["answer"]} for r in rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "model", context=64)


def test_the_shipped_study_has_the_published_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QA_CSV", "questions.csv")
    plan = read_plan(STUDY)
    assert isinstance(plan, StudyPlan) and len(plan.seeds) == 3
    values = yaml.safe_load(STUDY.read_text())
    common, taught = values["common"], values["arms"]["taught"]["values"]
    wanted = {"accumulation": 8, "learning_rate": 6.795e-5, "clip_norm": 1.0, "patience": 4}
    assert wanted.items() <= common["train"].items() and common["train"].get("restore_best", True)
    assert (common["batch_size"], common["context"], common["measuring"]["context"]) == (32, 512, 512)
    assert "fractions" not in common  # 70/15/15 is the default
    assert (taught["alpha"], taught["beta"], taught["temperature"], taught["on"]) == (0.5664, 0.1081, 0.7, "all")
    assert values["arms"]["alone"]["values"]["beta"] == 0.0 and values["arms"]["untouched"]["values"]["part"] == "test"
    decoding = QuestionAnswering().decoding()
    assert (decoding.temperature, decoding.top_k, decoding.top_p, decoding.max_new_tokens) == (0.7, 50, 0.95, 120)
    assert QuestionAnswering().prompt == "Question: {question}\nAnswer:"


def test_test_rows_touch_nothing_before_the_end(tmp_path: Path, model: Path, questions: list[dict[str, Any]]) -> None:
    """Two runs that differ in their test rows alone stop at one step with bit-equal weights; their figures differ."""
    common = {
        "teacher": str(model), "model": str(model), "task": {"kind": "qa"}, "dtype": "fp32", "context": 64,
        "data": write(tmp_path / "train.csv", questions[:20]), "valid": write(tmp_path / "valid.csv", questions[20:28]),
        "alpha": 0.5664, "beta": 0.1081, "temperature": 0.7, "batch_size": 5,
        "techniques": [{"kind": "depth", "layers": 1}],
        "train": {"steps": 30, "accumulation": 2, "learning_rate": 0.5, "schedule": "constant", "evaluate_every": 1,
                  "patience": 4},
        "decoding": {"max_new_tokens": 4, "temperature": 0.7, "top_k": 50, "top_p": 0.95, "truncate_prompts": True},
    }  # fmt: skip
    reports, weights, logged = [], [], []
    for name, rows in (("a", questions[28:34]), ("b", questions[34:])):
        test = write(tmp_path / f"{name}.csv", rows)
        reports.append(run("distill", out=str(tmp_path / name), test=test, **common))
        weights.append(load_bundle(str(tmp_path / name)).model.state_dict())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logged.append([{k: v for k, v in line.items() if k.startswith(("valid", "train/nll"))} for line in lines])
    assert logged[0] == logged[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert reports[0]["metrics"]["nats per token"] != reports[1]["metrics"]["nats per token"]
    training, figures = reports[0]["training"], reports[0]["metrics"]
    valid = [line["valid/nll"] for line in logged[0] if "valid/nll" in line]
    best = min(range(len(valid)), key=valid.__getitem__)
    assert training["weights_step"] == best < training["steps"] == best + 4 < 30  # stopped after four worse ones
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(figures["nats per token"]["value"]), rel=1e-9)
    assert reports[0]["evaluated"] == "test" and figures["bleu"]["items"] == 6
    assert "nltk smoothing method 4" in reports[0]["protocol"]["bleu"]
