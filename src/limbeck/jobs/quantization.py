"""Quantization after training: the model, and what it loses and saves beside the original."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, JsonValue

from limbeck.data.batch import Batch, Example, collate
from limbeck.data.readers import Rows
from limbeck.errors import ConfigError
from limbeck.formats.hub import commits_of
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

__all__ = ["QuantizationOptions", "quantization"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_UNMEASURED: dict[str, Any] = {"evaluated": None, "metrics": {}, "comparisons": {}, "agreement": {}, "alarms": []}
"""What a report holds in place of figures where no rows were given to measure on."""


class QuantizationOptions(MeasuredTask, Reading, Recipe):
    """A model, a technique, and the rows that both are measured on."""

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


def quantization(options: QuantizationOptions, display: Display) -> Report:
    """Quantize, save, measure both, compare.

    Raises:
        ModelError: no such model, or a layout of another version.
        TechniqueError: the model is quantized already, or the calibration text is too short.
        DataError: rows that are missing, empty or shaped otherwise.
    """
    done = _done(options, display)
    if done is not None:
        return done
    source = load_bundle(options.model, _dtype(options), device_of(options.device))
    refuse_quantized(source.model, options.technique.name)
    options.task.check(source.model)
    rows = None if options.data is None else options.rows(options.data, options.task)
    calibration = None if options.calibration is None else options.rows(options.calibration, options.task)
    batches, used = _batches(options, calibration, source)
    display.say(*clamped(options.context if used else None, source.model.config.context, "calibration"))
    display.say(f"quantizing {options.model} by {options.technique.name}")
    model = _quantized(options, source, batches)  # before there is a run, so that what does not fit leaves none
    with Run.create(Path(options.out), options) as run:
        read = {"all": rows, "calibration": calibration}
        hashes = {name: some.hash for name, some in read.items() if some is not None}
        run.provenance(seed=options.seed, data=hashes, models=commits_of(options.model_dump()))
        model, deployed_specs = convert_all((options.technique,), model)
        save_bundle(model, source.tokenizer, run.model, generation=source.generation, deployed_specs=deployed_specs)
        source = load_bundle(options.model, _dtype(options), device_of(options.device))
        made = load_bundle(str(run.model), _dtype(options), device_of(options.device))
        if rows is not None:
            display.say(f"measuring both on {len(rows)} rows of {options.data}")
        values: dict[str, Any] = {
            "verb": options.verb,
            "run": str(run.path),
            "model": options.model,
            "rotate": options.rotate,
            "technique": options.technique,
            "deployed_specs": list(made.deployed_specs),
            "data": {} if rows is None else {"all": rows.describe()},
            "calibration": used,
            **(_UNMEASURED if rows is None else _compared(options, source, made, rows, run)),
            **_costs(options, source, made),
        }
        if rows is None:
            values["told"].insert(0, f"no figure was measured, as no rows were given: {_measuring(run.path)}")
        elif calibration is not None and calibration.hash == rows.hash:
            values["told"].insert(0, "the calibration rows are those measured on: the figures are too good")
        values = plain(values)
        run.finish(values)
        return Report(values, show_quantized(values))


def _done(options: QuantizationOptions, session: Display) -> Report | None:
    """Return the report of this very recipe's run, where it is finished."""
    if not (Path(options.out) / "recipe.yaml").is_file():
        return None
    with Run.create(Path(options.out), options) as run:
        if not run.finished:
            return None
        session.say(run.describe())
        return Report(run.report(), show_quantized(run.report()))


def _dtype(options: QuantizationOptions) -> torch.dtype:
    return dtype_of(options.dtype)


def _batches(
    options: QuantizationOptions, rows: Rows | None, source: Bundle
) -> tuple[list[Batch], dict[str, Any] | None]:
    """Calibration text in batches, rows of like length together, and what was taken of it."""
    if rows is None:
        return [], None
    context = min(options.context or source.model.config.context, source.model.config.context)
    examples, _ = options.task.encode(rows, source.tokenizer, context)
    taken: list[Example] = []
    tokens = 0
    for example in examples:
        if tokens + len(example) > options.calibration_tokens:
            break
        taken.append(example)
        tokens += len(example)
    if not taken:
        raise ConfigError(
            f"{options.calibration_tokens} calibration tokens do not hold the first row of {options.calibration}, "
            f"which has {len(examples[0])}: raise calibration_tokens, or lower context"
        )
    taken.sort(key=len, reverse=True)
    size = options.measuring.batch_size
    batches = [
        collate([[e] for e in taken[at : at + size]], source.tokenizer.pad_id).to(source.model.device)
        for at in range(0, len(taken), size)
    ]
    told = {**rows.describe(), "sequences": len(taken), "tokens": tokens, "context": context}
    return batches, told


def _quantized(options: QuantizationOptions, source: Bundle, batches: Sequence[Batch]) -> Decoder:
    """Quantize ``source``, in place; what stays as it is keeps the dtype that it was stored in."""
    torch.manual_seed(options.seed)
    before = () if options.rotate is None else (options.rotate,)
    model = apply_all((*before, options.technique), source.model, batches)
    assert source.folder is not None  # what was loaded lies somewhere
    return model.to(stored_dtype(source.folder) if options.dtype == "auto" else _dtype(options))


def _compared(options: QuantizationOptions, source: Bundle, made: Bundle, rows: Rows, run: Run) -> dict[str, Any]:
    """Figures of both, their paired differences, and how near their beliefs are."""
    decoding = options.generates(options.seed)
    files = {"original": run.scores / "original.jsonl", "quantized": run.scores / "quantized.jsonl"}
    found = {
        name: measure(b.model, b.tokenizer, options.task, rows, name, options.measuring, decoding, files[name])
        for name, b in (("original", source), ("quantized", made))
    }
    a, b = (Scores.read(files[name]) for name in ("original", "quantized"))
    each = {
        s.name: compare(a, b, s, level=options.measuring.level, seed=options.seed)
        for s in options.task.statistics(a.columns)
    }
    main = next(iter(each.values()))
    alarms = [*found["quantized"]["alarms"], quality_lost(main, options.lost).describe()]
    comparisons = {}
    for name, c in adjust(each, alone=next(iter(each))).items():
        told = verdict(c, ("the original", "the quantized model"), options.margin)
        relative = c.difference / abs(c.a) if c.a else None
        comparisons[name] = {**c.to_json(), "relative": relative, "verdict": told}
    return {
        **found["quantized"],  # in an evaluation's form, so that a study sets it beside those of the same rows
        "evaluated": "all",
        "alarms": fired_first(alarms),
        "original": found["original"],
        "quantized": found["quantized"],
        "comparisons": comparisons,
        "agreement": _near(options, source, made, rows, run.scores / "agreement.jsonl"),
    }


def _near(options: QuantizationOptions, source: Bundle, made: Bundle, rows: Rows, file: Path) -> dict[str, Any]:
    """KL and top-token agreement at every target of the rows; nothing where the head tells classes, not tokens."""
    if source.model.config.classes is not None:
        return {}
    reach = source.model.config.context
    examples, _ = options.task.encode(rows, source.tokenizer, min(options.measuring.context or reach, reach))
    near = agreement(source.model, made.model, examples, options.measuring.batch_size)
    near.write(file)
    m = options.measuring
    return {
        key: interval(near, statistic, level=m.level)
        for key, statistic in (("kl_nats", KL_PER_TOKEN), ("top_agreement", TOP_AGREEMENT))
    }


def _costs(options: QuantizationOptions, source: Bundle, made: Bundle) -> dict[str, Any]:
    """Bytes of the files of both (I19), and the speed of both, timed in turns (I32)."""
    with warnings.catch_warnings(record=True) as caught:  # a kernel that fails here says so by a warning
        warnings.simplefilter("always")
        speeds = alternated(source.model, made.model, options.speed)
    assert source.folder is not None and made.folder is not None
    before, after = disk_bytes(source.folder), disk_bytes(made.folder)
    peak = footprint(made.folder, _dtype(options)) if options.memory else None
    larger = [] if peak is None else _larger(footprint(source.folder, _dtype(options)), peak)
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
