"""A training job is a value that is handed functions: nothing subclasses it, and verbs that train hold no work."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.config import Config, build
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import DataSteps, PreparedTraining, rows_in_memory
from limbeck.jobs.recipe import Display
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Start
from limbeck.jobs.training import TrainingJob, task_objective
from limbeck.objectives.objective import AnyObjective
from limbeck.verbs.finetune import Finetune
from tests.reference.small_model import saved

SOURCE = Path(limbeck.__file__).parent
MOST = 5
"""Most parameters of a private function of the room that trains."""


def options(tmp_path: Path, **over: Any) -> Finetune:
    values = {
        "model": str(saved(tmp_path / "m")), "data": "toy:stories", "limit": 20, "out": str(tmp_path / "run"),
        "probes": "off", "dtype": "fp32", "measuring": {"generate": False}, "train": {"steps": 2, "log_every": 1},
    }  # fmt: skip
    return build(Finetune, {**values, **over})


def test_the_job_and_what_it_prepared_are_frozen_values() -> None:
    for kind in (TrainingJob, PreparedTraining, DataSteps):
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert not issubclass(kind, Config) and kind.__subclasses__() == []


def test_a_job_runs_on_the_functions_that_it_is_handed(tmp_path: Path) -> None:
    chosen, called = options(tmp_path), list[str]()

    def start(parts: Parts, device: torch.device) -> Start:
        called.append(f"start on {len(parts.train)} rows")
        return chosen.start(parts, device)

    def objective(prepared: PreparedTraining) -> AnyObjective:
        called.append(f"objective in {prepared.opened.path.name}")
        return task_objective(prepared)

    def extras(prepared: PreparedTraining, learned: AnyObjective) -> dict[str, Any]:
        called.append("extras")
        return {"own": prepared.model.count_parameters(), "training mode": prepared.model.training}

    report = TrainingJob(chosen, start, rows_in_memory(chosen), objective, extras=extras).run(Display.silent())
    rows = report.values["data"]["train"]["rows"]
    assert called == [f"start on {rows} rows", "objective in run", "extras"]
    assert report.values["own"] == report.values["cost"]["parameters"] and not report.values["training mode"]
    assert report.values["training"]["steps"] == 2


def test_in_a_dry_run_there_is_no_folder_to_write_to(tmp_path: Path) -> None:
    chosen, seen = options(tmp_path, dry_run=True), list[PreparedTraining]()

    def objective(prepared: PreparedTraining) -> AnyObjective:
        seen.append(prepared)
        return task_objective(prepared)

    job = TrainingJob(chosen, chosen.start, rows_in_memory(chosen), objective, planned_rate=1e9)
    report = job.run(Display.silent())
    assert report.values["expected"]["planned_rate"] == 1e9 and seen[0].run is None
    with pytest.raises(RuntimeError, match="not open"):
        _ = seen[0].opened
    assert not (tmp_path / "run").exists()


def test_a_stream_of_its_own_examples_replaces_the_data(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    steps = rows_in_memory(chosen)
    sizes: list[int] = []

    def fewer(prepared: PreparedTraining) -> Any:
        return dataclasses.replace(prepared.data, train=prepared.data.train[:4])

    def stream(data: Any, start: Start) -> Any:
        sizes.append(len(data.train))
        return steps.stream(data, start)

    job = TrainingJob(chosen, chosen.start, dataclasses.replace(steps, stream=stream), examples=fewer)
    job.run(Display.silent())
    assert len(sizes) == 2 and sizes[1] == 4 < sizes[0]


VERBS = [p.stem for p in sorted((SOURCE / "verbs").glob("*.py")) if p.stem not in ("__init__", "table", "listing")]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_its_options_and_run(verb: str) -> None:
    tree = ast.parse((SOURCE / "verbs" / f"{verb}.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if not f.decorator_list] == ["run"], "validators and run alone"
    (run,) = (f for f in functions if f.name == "run")
    assert (run.end_lineno or 0) - run.lineno < 12, "the work is in jobs"


def test_nothing_trains_by_its_options_alone() -> None:
    assert TrainingOptions.run.__isabstractmethod__  # type: ignore[attr-defined]


def test_no_private_function_of_a_training_takes_ten_parameters() -> None:
    long = [
        f"{file.stem}.{node.name}"
        for file in (SOURCE / "jobs" / f"{name}.py" for name in ("training", "prepared", "pretraining", "distillation"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and len(node.args.args) + len(node.args.kwonlyargs) > MOST
    ]
    assert long == []
