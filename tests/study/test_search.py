from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from limbeck.config import build
from limbeck.errors import ConfigError, RunError
from limbeck.formats.load import load_bundle
from limbeck.jobs.recipe import Display
from limbeck.measure.cost import disk_bytes
from limbeck.study.candidates import Candidate, Workshop, random_cost
from limbeck.study.fit import Fit
from limbeck.study.limits import parse_objectives
from limbeck.study.search import FoundTrial, Search, chosen, open_storage
from limbeck.study.space import ChainStep, Knob, SearchPlan, address
from tests.reference.small_model import saved

QUIET = Display.silent()
MEASURE = {"data": "toy:stories", "limit": 8, "measuring": {"generate": False}, "probes": "off"}


def plan_of(base: str, **over: Any) -> dict[str, Any]:
    rounding = {"kind": "rtn", "bits": "$bits"}
    return {
        "base": base,
        "pipelines": {
            "rounded": [{
                "name": "small", "verb": "quantize",
                "values": {"model": "@base", "data": "toy:stories", "limit": 2, "technique": rounding,
                           "measuring": {"generate": False},
                           "speed": {"prompt_tokens": 2, "new_tokens": 2, "repeats": 1, "warm_up": 0}},
            }],
            "shallow": [{
                "name": "cut", "verb": "distill",
                "values": {"teacher": "@base", "data": "toy:stories", "limit": 30, "context": 16, "batch_size": 4,
                           "techniques": [{"kind": "depth", "layers": 1}], "packing": True, "beta": "$beta",
                           "train": {"steps": 50, "learning_rate": 1e-3}},
            }],
        },
        "space": {"bits": {"choices": [4, 8]}, "beta": {"low": 0.1, "high": 1.0}},
        "measure": {"task": MEASURE, "general": {**MEASURE, "data": "toy:verse"}},
        "objective": "minimise nats per token",
        "trials": 4,
        "startup": 4,
    } | over  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return str(saved(tmp_path_factory.mktemp("base") / "m", hidden_size=32, context=16))


def test_a_search_ends_with_a_model_that_fits_measured_again(base: str, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    limit = disk_bytes(Path(base)) * 0.9
    file.write_text(yaml.safe_dump(plan_of(base, trials=5, limits=f"bytes <= {limit:.0f}")))
    out = tmp_path / "out"
    values = Fit(search=str(file), out=str(out), dtype="fp32").run(QUIET).values
    assert values["fits"] and values["sentence"].endswith("every limit holds again"), values["sentence"]
    assert disk_bytes(out / "model") <= limit
    load_bundle(str(out / "model"))
    one = values["limits"][0]
    assert one["holds"] and one["measured_again"] == disk_bytes(Path(values["winner"]["model"]) / "model")
    assert not [r for r in values["refused"] if "failed" in r], values["refused"]
    assert len(values["runners_up"]) <= 3 and values["trials"] == 5
    assert "lost_generality" in values["winner"]["values"]
    assert json.loads((out / "fit.json").read_text())["model"] == str(out / "model") and (out / "fit.md").is_file()
    again = Fit(search=str(file), out=str(out), dtype="fp32").run(QUIET).values
    assert again["winner"] == values["winner"], "a search that is done is read"


def test_where_nothing_fits_the_nearest_is_named_and_nothing_is_trained(base: str, tmp_path: Path) -> None:
    plan = build(SearchPlan, plan_of(base, limits="bytes <= 1KB", trials=2), "plan")
    workshop = Workshop(plan, tmp_path, 0, QUIET)
    search = Search(plan, workshop, f"sqlite:///{tmp_path / 's.db'}", 0, QUIET)
    search.run()
    assert search.found() == [] and len(search.refused()) == 2
    assert "cannot fit bytes <= 1KB" in search.refused()[0]
    assert not list((tmp_path / "candidates").glob("*")) if (tmp_path / "candidates").exists() else True
    found = [
        FoundTrial(0, {}, "a", {"x": 1.0}, {"l": 0.5}, 0), FoundTrial(1, {}, "b", {"x": 2.0}, {"l": 0.1}, 0),
        FoundTrial(2, {}, "b", {"x": 2.0}, {"l": 0.1}, 0),
    ]  # fmt: skip
    order = chosen(found, parse_objectives("minimise x", ["x"])[0])
    assert [f.model for f in order] == ["b", "a"], "nearest first, equal candidates once"


def test_cost_before_training_is_that_of_the_candidate(base: str, tmp_path: Path) -> None:
    plan = build(SearchPlan, plan_of(base), "plan")
    for knobs in ({"pipeline": "rounded", "bits": 4}, {"pipeline": "shallow", "beta": 0.5}):
        steps = plan.steps(knobs)
        made = Workshop(plan, tmp_path, 0, QUIET).make(steps, 0.02)
        assert not made.failed, made.failed
        assert random_cost(base, steps)["bytes"] == pytest.approx(made.values["bytes"], rel=0.02)


def test_a_failed_candidate_has_its_reason_and_is_not_made_again(base: str, tmp_path: Path) -> None:
    plan = build(SearchPlan, plan_of(base), "plan")
    steps = (ChainStep(name="x", verb="distill", values={"teacher": "@base", "data": "none.txt"}),)
    workshop = Workshop(plan, tmp_path, 0, QUIET)
    first = workshop.make(steps)
    assert "none.txt" in first.failed and workshop.make(steps).seconds == first.seconds


class Table(Workshop):
    """Reads candidates from a recorded table instead of making them."""

    def __init__(self, plan: SearchPlan, rows: dict[str, dict[str, float]], folder: Path) -> None:
        super().__init__(plan, folder, 0, QUIET)
        self.rows, self.paid = rows, 0.0

    def known(self) -> list[str]:
        return ["loss", "bytes"]

    def make(self, steps: Any, share: float = 1.0) -> Candidate:
        key = json.dumps(steps[0].values["k"])
        self.paid += share
        return Candidate(self.folder, key, self.rows[key], 1.0)


def recorded(seed: int) -> tuple[SearchPlan, dict[str, dict[str, float]]]:
    """A table of 160 arms with the shape of a precision study: fewer bits and layers cost nats, unevenly."""
    rng = np.random.default_rng(seed)
    knobs = {"bits": [2, 3, 4, 5, 6, 8, 12, 16], "layers": [2, 3, 4, 5], "group_size": [16, 32, 64, 128, 256]}
    rows = {}
    for values in product(*knobs.values()):
        bits, layers, group = values
        loss = 1.3 + 8 * 2.0**-bits * (group / 64) ** 0.3 + 0.5 * (5 - layers) ** 1.5 + rng.normal(0, 0.01)
        rows[json.dumps(list(values))] = {"loss": loss, "bytes": layers * (bits + 16 / group) + 10}
    step = {"name": "t", "verb": "quantize", "values": {"k": ["$bits", "$layers", "$group_size"]}}
    plan = {
        "base": "x", "pipelines": {"p": [step]}, "space": {k: {"choices": v} for k, v in knobs.items()},
        "measure": {"task": {}}, "objective": "minimise loss, minimise bytes", "trials": 24, "startup": 8,
    }  # fmt: skip
    return build(SearchPlan, plan, "plan"), rows


def hypervolume(points: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Area dominated below ``corner``, strip by strip."""
    area, top = 0.0, corner[1]
    for x, y in sorted(points):
        if x < corner[0] and y < top:
            area += (corner[0] - x) * (top - y)
            top = y
    return area


def test_a_replayed_search_beats_random_at_equal_cost(tmp_path: Path) -> None:
    whole, near, random = [], [], []
    for seed in range(2):
        plan, rows = recorded(seed)
        table = Table(plan, rows, tmp_path)
        search = Search(plan, table, f"journal:{tmp_path / f'{seed}.log'}", seed, QUIET)
        search.run()
        assert table.paid <= 0.15 * len(rows) + 1e-9
        every = [(r["loss"], r["bytes"]) for r in rows.values()]
        got = [(float(f.values["loss"] or 0), float(f.values["bytes"] or 0)) for f in search.found()]
        worst = max(x for x, _ in every), max(y for _, y in every)
        whole.append(hypervolume(got, worst) / hypervolume(every, worst))
        # a corner that two-bit arms do not inflate: there random draws leave much of the front out
        corner = float(np.quantile([x for x, _ in every], 0.75)), float(np.quantile([y for _, y in every], 0.75))
        near.append(hypervolume(got, corner) / hypervolume(every, corner))
        for draw in range(10):
            drawn = np.random.default_rng(draw).choice(len(every), size=24, replace=False)
            random.append(hypervolume([every[i] for i in drawn], corner) / hypervolume(every, corner))
    assert np.mean(whole) >= 0.95
    assert np.mean(near) >= np.mean(random) + 0.02


def test_two_workers_share_one_storage(tmp_path: Path) -> None:
    plan, rows = recorded(0)
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one, two = (Search(plan, Table(plan, rows, tmp_path), url, seed, QUIET) for seed in (0, 1))
    one.study.optimize(one._trial, n_trials=10)
    two.run()
    assert len(one.found()) == 24 == len(two.found())


def test_what_is_wrong_is_said_before_anything_runs(base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Fit(search=str(tmp_path / "none.yaml")).run(QUIET)
    file = tmp_path / "wrong.yaml"
    wrong = plan_of(base)
    wrong["pipelines"]["rounded"][0]["values"]["technique"] = {"kind": "rtn", "bitz": "$bits"}
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match="unknown key 'technique.bitz'"):
        Fit(search=str(file), out=str(tmp_path / "o")).run(QUIET)
    with pytest.raises(ConfigError, match=r"names '\$bitz', no knob; did you mean 'bits'"):
        bad = plan_of(base)
        bad["pipelines"]["rounded"][0]["values"]["technique"] = {"kind": "rtn", "bits": "$bitz"}
        build(SearchPlan, bad, "plan")
    with pytest.raises(ConfigError, match="needs '@bass'; did you mean 'base'"):
        bad = plan_of(base)
        bad["pipelines"]["rounded"][0]["values"]["model"] = "@bass"
        build(SearchPlan, bad, "plan")
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_storage("nothing://x")
    plan, rows = recorded(0)
    rungs = plan.model_copy(update={"rungs": (0.25,)})
    with pytest.raises(ConfigError, match="one objective"):
        Search(rungs, Table(plan, rows, tmp_path), f"journal:{tmp_path / 'x.log'}", 0, QUIET)
    for values in ({"choices": [1], "low": 0}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}, {}):
        with pytest.raises(ConfigError):
            build(Knob, values, "knob")
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})


def test_successive_halving_and_price_drop_arms_early(tmp_path: Path) -> None:
    plan, rows = recorded(1)
    priced = plan.model_copy(update={"objective": "minimise loss", "rungs": (0.25,), "trials": 30})
    steps = tuple(s.model_copy(update={"values": {**s.values, "train": {"steps": 100}}}) for s in priced.pipelines["p"])
    priced = priced.model_copy(update={"pipelines": {"p": steps}})
    search = Search(priced, Table(priced, rows, tmp_path), f"sqlite:///{tmp_path / 's.db'}", 0, QUIET)
    search.run()
    said = " ".join(search.refused())
    assert "priced at" in said or "dropped at 25%" in said
    best = min(r["loss"] for r in rows.values())
    winner = chosen(search.found(), search.objectives[0])[0]
    assert winner.values["loss"] == pytest.approx(best, abs=0.1)


def test_a_storage_that_goes_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows = recorded(0)
    search = Search(plan, Table(plan, rows, tmp_path), f"journal:{tmp_path / 'j.log'}", 0, QUIET)

    def gone(*_: object, **__: object) -> None:
        raise OSError("server closed the connection")

    monkeypatch.setattr(search.study, "optimize", gone)
    with pytest.raises(RunError, match="went away: server closed"):
        search.run()
