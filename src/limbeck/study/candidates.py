"""Candidates of a search: made by a chain of verbs, measured, and kept under the address of their content."""

from __future__ import annotations

import copy
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from limbeck.config import build, merge
from limbeck.errors import LimbeckError, RunError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.recipe import Display, Recipe
from limbeck.measure.cost import cost
from limbeck.model.decoder import Decoder
from limbeck.storage import plain, write_json
from limbeck.study.plan import replace
from limbeck.study.space import ChainStep, SearchPlan, address
from limbeck.techniques.depth import Depth
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import apply_all, convert_all
from limbeck.verbs.table import recipe

__all__ = ["Candidate", "Workshop", "random_cost"]


@dataclass(frozen=True)
class Candidate:
    """One arm of a search.

    Attributes:
        folder: where its runs lie; its name is the address of its content.
        model: folder of its last step's run.
        values: measure -> value.
        seconds: that making and measuring it took.
        failed: why there is none; empty where there is.
    """

    folder: Path
    model: str
    values: Mapping[str, float | None]
    seconds: float
    failed: str = ""
    reports: Mapping[str, Any] = field(default_factory=dict)


class Workshop:
    """Makes and measures candidates of one search below one folder.

    Several processes may share the folder: a candidate is made under a lock that dies with its process, and one that
    is finished is read.
    """

    def __init__(self, plan: SearchPlan, folder: Path, seed: int, session: Display) -> None:
        self.plan, self.folder, self.seed, self.session = plan, folder, seed, session
        self._base: dict[str, Any] | None = None

    @property
    def base(self) -> dict[str, Any]:
        """Reports of the base on every measure, by its name; measured once."""
        if self._base is None:
            self._base = self._reports(self.plan.base, self.folder / "base")
        return self._base

    def check(self) -> None:
        """Build every verb of every chain with the first value of each knob, before anything runs.

        Raises:
            ConfigError: an unknown key or a wrong value; names the step.
        """
        first = {name: k.choices[0] if k.choices else k.low for name, k in self.plan.space.items()}
        whole = {n: int(v) if self.plan.space[n].whole and v is not None else v for n, v in first.items()}
        for pipeline in self.plan.pipelines:
            folders = {"base": self.plan.base}
            for step in self.plan.steps({**whole, "pipeline": pipeline}):
                folders[step.name] = str(self.folder / step.name)
                self._built(step, folders)

    def make(self, steps: Sequence[ChainStep], share: float = 1.0) -> Candidate:
        """Run a chain of verbs and measure what comes out; a failure is a candidate with its reason.

        Args:
            steps: with their knobs filled in.
            share: of each step's training steps: 1, or less for a probe or a rung.
        """
        cut = [s.model_copy(update={"values": _shortened(s.values, share)}) for s in steps]
        named = {
            "base": self.plan.base, "steps": [s.model_dump(mode="json") for s in cut],
            "measure": self.plan.measure, "common": self.plan.common, "seed": self.seed,
        }  # fmt: skip
        place = self.folder / "candidates" / address(named)
        file = place / "candidate.json"
        with _held(place):
            if file.is_file():
                found = json.loads(file.read_text(encoding="utf-8"))
                return Candidate(place, **found)
            write_json(place / "made_of.json", plain(named))
            started = time.perf_counter()
            try:
                model = self._made(cut, place)
                reports = self._reports(model, place / "measured")
                values = self._values(reports)
                made = Candidate(place, model, values, time.perf_counter() - started, reports=_short(reports))
            except LimbeckError as error:
                made = Candidate(place, "", {}, time.perf_counter() - started, " ".join(str(error).split()))
            write_json(file, plain({k: v for k, v in asdict(made).items() if k != "folder"}))
        return made

    def again(self, model: str) -> dict[str, float | None]:
        """Measure a model in fresh processes, by the command itself.

        Raises:
            RunError: a command failed.
        """
        reports = {}
        for name, values in self.plan.measure.items():
            asked = replace({**self._common("evaluate"), **values, "model": model, "seed": self.seed}, {})
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "evaluate.yaml"
                file.write_text(yaml.safe_dump(plain(asked)), encoding="utf-8")
                command = [sys.executable, "-m", "limbeck", "evaluate", "--config", str(file), "--json"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise RunError(f"{model} could not be measured again in a process of its own: {last}")
            reports[name] = json.loads(done.stdout.splitlines()[-1])
        return self._values(reports)

    def known(self) -> list[str]:
        """Return names of all measures: costs, the main figure by its own name, and ``entry.figure``."""
        return list(self._values(self.base))

    def _common(self, verb: str) -> dict[str, Any]:
        fields = recipe(verb).model_fields
        return {k: v for k, v in self.plan.common.items() if k in fields}

    def _made(self, steps: Sequence[ChainStep], place: Path) -> str:
        folders = {"base": self.plan.base}
        for step in steps:
            folders[step.name] = str(place / step.name)
            self._built(step, folders).run(self.session)
        return folders[steps[-1].name] if steps else self.plan.base

    def _built(self, step: ChainStep, folders: Mapping[str, str]) -> Recipe:
        values = replace(merge(self._common(step.verb), step.values), folders)
        asked = {**values, "seed": self.seed, "out": folders[step.name]}
        return build(recipe(step.verb), asked, f"step '{step.name}'")

    def _reports(self, model: str, place: Path) -> dict[str, Any]:
        kind, out = recipe("evaluate"), {}
        for name, values in self.plan.measure.items():
            asked = replace({**self._common("evaluate"), **values, "model": model}, {})
            one = build(kind, {**asked, "seed": self.seed, "out": str(place / name)}, f"measure '{name}'")
            out[name] = plain(one.run(self.session).values)
        return out

    def _values(self, reports: Mapping[str, Any]) -> dict[str, float | None]:
        first = next(iter(reports))
        spent = reports[first]["cost"]
        out: dict[str, float | None] = {
            "bytes": spent["disk_bytes"], "ms_per_token": spent["speed"]["decode_ms_per_token"],
            "prefill_ms": spent["speed"]["prefill_ms"], "parameters": spent["parameters"],
            "memory_bytes": spent["memory_bytes"],
        }  # fmt: skip
        for name, report in reports.items():
            for figure, metric in report["metrics"].items():
                out[f"{name}.{figure}"] = metric["value"]
        main = next(iter(reports[first]["metrics"]))
        out[main] = reports[first]["metrics"][main]["value"]
        before = reports if self._base is None else self._base
        out["lost_quality"] = _lost(before[first], reports[first])
        if "general" in reports:
            out["lost_generality"] = _lost(before["general"], reports["general"])
        return out


def random_cost(base: str, steps: Sequence[ChainStep]) -> dict[str, float]:
    """Measure bytes and speed of a candidate before it is trained: its structure with the base's own weights cut down.

    Depth, width by ``architecture`` excepted, and every quantizer of the chain are applied by rounding, which takes
    neither data nor training and leaves files of the same size as GPTQ of the same grid.
    """
    bundle = load_bundle(base, torch.float32)
    model: Decoder = copy.deepcopy(bundle.model)
    techniques: list[Any] = []
    for step in steps:
        kinds = [*step.values.get("techniques", ()), *([t] if (t := step.values.get("technique")) else [])]
        for value in kinds:
            if value.get("kind") == "depth":
                techniques.append(Depth(layers=value["layers"]))
            elif value.get("kind") in ("rtn", "gptq"):
                grid = {k: v for k, v in value.items() if k in RTN.model_fields and k not in ("kind", "clip")}
                techniques.append(RTN(**grid))
        if step.verb == "quantize" and "technique" not in step.values:
            techniques.append(RTN())
    with tempfile.TemporaryDirectory() as place:
        model = apply_all(tuple(techniques), model, ())
        model, deployed_specs = convert_all(tuple(techniques), model)
        save_bundle(model, bundle.tokenizer, Path(place) / "m", deployed_specs=deployed_specs)
        spent = cost(model, Path(place) / "m")
    return {
        "bytes": float(spent.disk_bytes or 0), "ms_per_token": float(spent.speed["decode_ms_fastest"]),
        "prefill_ms": float(spent.speed["prefill_ms"]), "parameters": float(spent.parameters),
        "memory_bytes": float(spent.memory_bytes),
    }  # fmt: skip


def _shortened(values: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return the same training with a share of its steps; what has no ``train.steps`` is left as it is."""
    train = values.get("train")
    if share >= 1 or not isinstance(train, Mapping) or "steps" not in train:
        return dict(values)
    return {**values, "train": {**train, "steps": max(1, round(train["steps"] * share))}}


def _lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Share of the main figure that was lost; negative: a gain; None where it was 0."""
    name = next(iter(before["metrics"]))
    a, b = before["metrics"][name]["value"], after["metrics"][name]["value"]
    sign = 1.0 if before["metrics"][name]["better"] == "lower" else -1.0
    return sign * (b - a) / abs(a) if a else None


def _short(reports: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("metrics", "run", "scores", "alarms")
    return {name: {k: r.get(k) for k in kept} for name, r in reports.items()}


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Hold the lock of a candidate; another process that makes the same one is waited for."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".making").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
