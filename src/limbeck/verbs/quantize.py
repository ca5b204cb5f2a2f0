"""``limbeck quantize``: fewer bits a weight, and what that costs and saves, measured beside the original."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, JsonValue

from limbeck.data.batch import Batch, Example, collate
from limbeck.data.readers import Rows
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle, save_bundle
from limbeck.formats.stored import stored_dtype, stored_dtypes
from limbeck.jobs.checks import fired_first
from limbeck.jobs.measured_task import MeasuredTask
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import measure
from limbeck.jobs.reports.limits import clamped
from limbeck.jobs.reports.quantization import Speeds, alternated, quality_lost, show_quantized
from limbeck.jobs.source import Reading, device_of, dtype_of
from limbeck.kernels.packed import choose
from limbeck.measure.agreement import KL_PER_TOKEN, TOP_AGREEMENT, agreement
from limbeck.measure.cost import SpeedProtocol, cost, disk_bytes
from limbeck.measure.footprint import Footprint, footprint
from limbeck.measure.scores import Scores
from limbeck.measure.stats import adjust, compare, interval, verdict
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import QuantizedLinear
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.techniques.quantized import refuse_quantized
from limbeck.techniques.rotate import Rotate
from limbeck.techniques.rtn import RTN
from limbeck.techniques.table import AnyPostTraining
from limbeck.techniques.technique import apply_all, convert_all

__all__ = ["Quantize"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_UNMEASURED: dict[str, Any] = {"evaluated": None, "metrics": {}, "comparisons": {}, "agreement": {}, "alarms": []}
"""What a report holds in place of figures where no rows were given to measure on."""


class Quantize(MeasuredTask, Reading, Recipe):
    """Quantize a model after training, save it, and compare it with the original.

    Figures of the task with intervals and a paired verdict, KL to the original and top-token agreement, bytes of the
    files of both, speed of both.
    """

    verb: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "quantize a model, and measure what it loses and saves"

    model: str = Field(description=NAMES, json_schema_extra={"positional": True})
    data: str | None = Field(
        None, description="rows to measure on: a path, toy:NAME or a Hub id; none: size and speed alone are measured",
        json_schema_extra=_DATA,
    )  # fmt: skip
    calibration: str | None = Field(
        None, description="rows that the technique looks at; not those measured on", json_schema_extra=_DATA
    )
    calibration_tokens: int = Field(
        65_536, ge=1, description="take no more tokens of it than this", json_schema_extra=_DATA
    )
    context: int | None = Field(
        None, ge=2, description="tokens a calibration sequence; none: the model's own", json_schema_extra=_DATA
    )
    rotate: Rotate | None = Field(None, description="rotate the weights first, which changes no logit; none: do not")
    technique: AnyPostTraining = Field(default_factory=RTN, description="how to quantize")
    margin: float | None = Field(None, gt=0, description="a difference that does not matter: equivalence is tested too")
    lost: float = Field(
        0.1, gt=0, le=1, description="alarm if the main figure of the quantized model is worse by more than this share"
    )
    speed: SpeedProtocol = Field(default_factory=SpeedProtocol, description="how both are timed, in turns")
    memory: bool = Field(False, description="measure peak memory at load and in use too, in a process of its own")
    out: str = Field(description="run folder to write to", json_schema_extra={"section": "common"})

    def run(self, session: Display) -> Report:
        """Quantize, save, measure both, compare.

        Raises:
            ModelError: no such model, or a layout of another version.
            TechniqueError: the model is quantized already, or the calibration text is too short.
            DataError: rows that are missing, empty or shaped otherwise.
        """
        done = self._done(session)
        if done is not None:
            return done
        source = load_bundle(self.model, self._dtype(), device_of(self.device))
        refuse_quantized(source.model, self.technique.name)
        self.task.check(source.model)
        rows = None if self.data is None else self.rows(self.data, self.task)
        calibration = None if self.calibration is None else self.rows(self.calibration, self.task)
        batches, used = self._batches(calibration, source)
        session.say(*clamped(self.context if used else None, source.model.config.context, "calibration"))
        session.say(f"quantizing {self.model} by {self.technique.name}")
        model = self._quantized(source, batches)  # before there is a run, so that what does not fit leaves none
        with Run.create(Path(self.out), self) as run:
            read = {"all": rows, "calibration": calibration}
            run.provenance(seed=self.seed, data={name: some.hash for name, some in read.items() if some is not None})
            model, deployed_specs = convert_all((self.technique,), model)
            save_bundle(model, source.tokenizer, run.model, generation=source.generation, deployed_specs=deployed_specs)
            source = load_bundle(self.model, self._dtype(), device_of(self.device))
            made = load_bundle(str(run.model), self._dtype(), device_of(self.device))
            if rows is not None:
                session.say(f"measuring both on {len(rows)} rows of {self.data}")
            values: dict[str, Any] = {
                "verb": self.verb,
                "run": str(run.path),
                "model": self.model,
                "rotate": self.rotate,
                "technique": self.technique,
                "deployed_specs": list(made.deployed_specs),
                "data": {} if rows is None else {"all": rows.describe()},
                "calibration": used,
                **(_UNMEASURED if rows is None else self._compared(source, made, rows, run)),
                **self._costs(source, made),
            }
            if rows is None:
                values["told"].insert(0, f"no figure was measured, as no rows were given: {_measuring(run.path)}")
            elif calibration is not None and calibration.hash == rows.hash:
                values["told"].insert(0, "the calibration rows are those measured on: the figures are too good")
            values = plain(values)
            run.finish(values)
            return Report(values, show_quantized(values))

    def _done(self, session: Display) -> Report | None:
        """The report of this very recipe's run, where it is finished."""
        if not (Path(self.out) / "recipe.yaml").is_file():
            return None
        with Run.create(Path(self.out), self) as run:
            if not run.finished:
                return None
            session.say(run.describe())
            return Report(run.report(), show_quantized(run.report()))

    def _dtype(self) -> torch.dtype:
        return dtype_of(self.dtype)

    def _batches(self, rows: Rows | None, source: Bundle) -> tuple[list[Batch], dict[str, Any] | None]:
        """Calibration text in batches, rows of like length together, and what was taken of it."""
        if rows is None:
            return [], None
        context = min(self.context or source.model.config.context, source.model.config.context)
        examples, _ = self.task.encode(rows, source.tokenizer, context)
        taken: list[Example] = []
        tokens = 0
        for example in examples:
            if tokens + len(example) > self.calibration_tokens:
                break
            taken.append(example)
            tokens += len(example)
        if not taken:
            raise ConfigError(
                f"{self.calibration_tokens} calibration tokens do not hold the first row of {self.calibration}, which "
                f"has {len(examples[0])}: raise calibration_tokens, or lower context"
            )
        taken.sort(key=len, reverse=True)
        size = self.measuring.batch_size
        batches = [
            collate([[e] for e in taken[at : at + size]], source.tokenizer.pad_id).to(source.model.device)
            for at in range(0, len(taken), size)
        ]
        told = {**rows.describe(), "sequences": len(taken), "tokens": tokens, "context": context}
        return batches, told

    def _quantized(self, source: Bundle, batches: Sequence[Batch]) -> Decoder:
        """Quantize ``source``, in place; what stays as it is keeps the dtype that it was stored in."""
        torch.manual_seed(self.seed)
        before = () if self.rotate is None else (self.rotate,)
        model = apply_all((*before, self.technique), source.model, batches)
        assert source.folder is not None  # what was loaded lies somewhere
        return model.to(stored_dtype(source.folder) if self.dtype == "auto" else self._dtype())

    def _compared(self, source: Bundle, made: Bundle, rows: Rows, run: Run) -> dict[str, Any]:
        """Figures of both, their paired differences, and how near their beliefs are."""
        decoding = self.generates(self.seed)
        files = {"original": run.scores / "original.jsonl", "quantized": run.scores / "quantized.jsonl"}
        found = {
            name: measure(b.model, b.tokenizer, self.task, rows, name, self.measuring, decoding, files[name])
            for name, b in (("original", source), ("quantized", made))
        }
        a, b = (Scores.read(files[name]) for name in ("original", "quantized"))
        each = {
            s.name: compare(a, b, s, level=self.measuring.level, seed=self.seed)
            for s in self.task.statistics(a.columns)
        }
        main = next(iter(each.values()))
        alarms = [*found["quantized"]["alarms"], quality_lost(main, self.lost).describe()]
        comparisons = {}
        for name, c in adjust(each, alone=next(iter(each))).items():
            told = verdict(c, ("the original", "the quantized model"), self.margin)
            relative = c.difference / abs(c.a) if c.a else None
            comparisons[name] = {**c.to_json(), "relative": relative, "verdict": told}
        return {
            **found["quantized"],  # in an evaluation's form, so that a study sets it beside those of the same rows
            "evaluated": "all",
            "alarms": fired_first(alarms),
            "original": found["original"],
            "quantized": found["quantized"],
            "comparisons": comparisons,
            "agreement": self._near(source, made, rows, run.scores / "agreement.jsonl"),
        }

    def _near(self, source: Bundle, made: Bundle, rows: Rows, file: Path) -> dict[str, Any]:
        """KL and top-token agreement at every target of the rows; nothing where the head tells classes, not tokens."""
        if source.model.config.classes is not None:
            return {}
        reach = source.model.config.context
        examples, _ = self.task.encode(rows, source.tokenizer, min(self.measuring.context or reach, reach))
        near = agreement(source.model, made.model, examples, self.measuring.batch_size)
        near.write(file)
        m = self.measuring
        return {
            key: interval(near, statistic, level=m.level)
            for key, statistic in (("kl_nats", KL_PER_TOKEN), ("top_agreement", TOP_AGREEMENT))
        }

    def _costs(self, source: Bundle, made: Bundle) -> dict[str, Any]:
        """Bytes of the files of both (I19), and the speed of both, timed in turns (I32)."""
        with warnings.catch_warnings(record=True) as caught:  # a kernel that fails here says so by a warning
            warnings.simplefilter("always")
            speeds = alternated(source.model, made.model, self.speed)
        assert source.folder is not None and made.folder is not None
        before, after = disk_bytes(source.folder), disk_bytes(made.folder)
        peak = footprint(made.folder, self._dtype()) if self.memory else None
        larger = [] if peak is None else _larger(footprint(source.folder, self._dtype()), peak)
        return {
            "cost": cost(made.model, made.folder, timed=speeds.quantized, peak=asdict(peak) if peak else None),
            "bytes": {
                "original": before,
                "quantized": after,
                "ratio": after / before,
                "original_stored": stored_dtypes(source.folder),
                "memory": {"original": source.model.count_bytes(), "quantized": made.model.count_bytes()},
            },
            "speed": speeds,
            "told": [*_told(made.model, speeds), *larger, *dict.fromkeys(str(w.message) for w in caught)],
        }


def _measuring(run: Path) -> str:
    return f"limbeck evaluate {run} --data FILE measures it, best on rows other than those of the calibration"


def _larger(original: Footprint, quantized: Footprint) -> list[str]:
    """Say where the quantized model takes more memory in use than its original."""
    a, b = original.use_bytes, quantized.use_bytes
    if b <= a:
        return []
    sizes = f"{b / 1e6:.1f} against {a / 1e6:.1f} MB"
    return [f"the quantized model takes more memory in use here than the original: {sizes}"]


def _told(model: Decoder, speeds: Speeds) -> list[str]:
    """Sentences that must be shown: kernels that are missing here, and a model that is slower for being smaller."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    missing = Counter(
        m.quantized.layout.kind
        for m in layers
        if choose(m.quantized.prepared(), 1, model.dtype) not in ("packed", "integer")
    )
    told = [
        f"no packed kernel runs {n} of {len(layers)} {kind} matrices of this layout on this machine: their numbers are "
        "written out for every token, which costs time"
        for kind, n in missing.items()
    ]
    if speeds.slower_prompt:
        told.append(f"the quantized model reads prompts {speeds.prefill_ratio:.2f} times slower here than the original")
    return told + ([speeds.sentence] if speeds.slower else [])
