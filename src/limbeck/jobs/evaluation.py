"""Evaluation of a model on rows of a task: its options, and the figures, alarms and cost that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import Example
from limbeck.data.readers import Rows
from limbeck.data.same_tokens import check_alike
from limbeck.data.splits import split_rows
from limbeck.errors import ConfigError
from limbeck.formats.hub import commits_of
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.checks import Checks, ProbeLevel, audited, encoded, fired_first, leak_alarms
from limbeck.jobs.measured_task import MeasuredTask
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import measure, show_report
from limbeck.jobs.source import Parts, Reading, device_of, dtype_of
from limbeck.jobs.zero_shot import ZeroShotRows
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.tasks.text import Text

__all__ = ["EvaluationOptions", "evaluation"]

_DATA: dict[str, JsonValue] = {"section": "data"}


class EvaluationOptions(MeasuredTask, Reading, ModelSource, ZeroShotRows, Recipe):
    """A model, the rows and the task that it is measured on, and how."""

    data: str | None = Field(
        None, description="rows: a path, toy:NAME or a Hub id; none: with a harness alone", json_schema_extra=_DATA
    )
    part: Literal["all", "train", "valid", "test"] = Field(
        "all",
        description="the whole, or the part that training with the same fractions calls so",
        json_schema_extra=_DATA,
    )
    split_by: str | None = Field(None, description="field by which parts are made", json_schema_extra=_DATA)
    fractions: tuple[float, float, float] = Field(
        (0.7, 0.15, 0.15), description="train, valid and test shares", json_schema_extra=_DATA
    )
    probes: ProbeLevel = Field("quick", description="further measurements, and the alarms that they give")
    learned: str | None = Field(
        None,
        description="rows that the model was trained on: leaked evaluation rows and copied text raise an alarm",
        json_schema_extra=_DATA,
    )
    overlap: Literal["list", "refuse"] = Field(
        "list", description="evaluation rows that 'learned' holds too: list them, or refuse", json_schema_extra=_DATA
    )
    base: str | None = Field(
        None, description="the model before its training; the probes measure lost generality against it"
    )
    general: str | None = Field(
        None, description="held-out general text, on which the base is compared too", json_schema_extra=_DATA
    )
    memory: bool = Field(False, description="measure peak memory at load and in use too, in a process of its own")
    predictions: str | None = Field(
        None, description="file for what was generated or chosen for each row, in the task's published format"
    )


def evaluation(options: EvaluationOptions, display: Display) -> Report:
    """Measure a model on rows and report; with ``out`` also write a run folder.

    Raises:
        LimbeckError: model, data or task do not fit, or the disk refused a write.
    """
    assert options.data is not None, "checked when the recipe was built"
    _check_predictions(options)
    rows = options.rows(options.data, options.task)
    if options.part != "all":
        shares = {k: f for k, f in zip(("train", "valid", "test"), options.fractions, strict=True) if f > 0}
        if options.part not in shares:
            raise ConfigError(f"the {options.part} share of 'fractions' is zero: give it one, or measure another part")
        rows = split_rows(rows, options.split_by or options.task.split_by, shares)[options.part]
    known = _known(options, rows)
    display.say(*rows.notes, f"measuring {options.model} on {len(rows)} rows of {options.data}")
    bundle = options.load(options.dtype, options.device)
    values: dict[str, Any] = {
        "verb": options.verb,
        "model": options.model,
        "data": {options.part: rows.describe()},
    }
    if options.out is None:
        return _measured(options, values, bundle, rows, known, None)
    with Run.create(Path(options.out), options) as run:
        if run.finished and (options.predictions is None or Path(options.predictions).is_file()):
            display.say(run.describe())
            return Report(run.report(), show_report(run.report()))
        run.provenance(seed=options.seed, data={options.part: rows.hash}, models=commits_of(options.model_dump()))
        report = _measured(
            options, {**values, "run": str(run.path)}, bundle, rows, known, run.scores / f"{options.part}.jsonl"
        )
        run.finish(report.values)
        return report


def _check_predictions(options: EvaluationOptions) -> None:
    """Refuse early what could only be refused after the work."""
    if options.predictions is None:
        return
    if not options.task.predicts(options.measuring):
        more = "" if options.measuring.generate else ", or --no-generate"
        raise ConfigError(
            f"task '{options.task.name}' predicts nothing for each row, so that there is nothing to write to "
            f"{options.predictions}: leave out --predictions{more}"
        )
    if Path(options.predictions).is_dir():
        raise ConfigError(f"{options.predictions} is a folder: name a file for the predictions")


def _known(options: EvaluationOptions, rows: Rows) -> tuple[Rows | None, AuditReport | None]:
    """Return the rows that the model learned, and what of ``rows`` stands in them.

    Raises:
        DataError: some does, and that is to be refused.
    """
    if options.learned is None:
        return None, None
    learned = options.rows(options.learned, options.task, whole=True)
    _, found = audited(Parts(learned, None, rows), options.overlap, options.task)
    return learned, found


def _checks(
    options: EvaluationOptions, bundle: Bundle, examples: list[Example], learned: Rows | None, context: int
) -> Checks:
    base, general, train = None, [], []
    if options.base is not None:
        before = load_bundle(options.base, dtype_of(options.dtype), device_of(options.device))
        sizes = (before.model.config.vocab_size, bundle.model.config.vocab_size)
        check_alike(before.tokenizer, bundle.tokenizer, *sizes)
        base = before.model
    if options.general is not None:
        text = Text()
        read_text = text.read(options.general, columns={}, limit=None, separator=options.separator)
        general = encoded(text, read_text, bundle.tokenizer, context, options.probes)
    if learned is not None and options.probes != "off":
        train = options.task.encode(learned, bundle.tokenizer, context)[0]
    decoding, batch_size = options.generates(), options.measuring.batch_size
    return Checks.of(
        options.probes, bundle.tokenizer, examples, decoding,
        base=base, train=train, general=general, batch_size=batch_size, seed=options.seed,
        zero_shot=options.zero_shot_probe(options.probes, options.task, base, bundle.tokenizer, batch_size),
    )  # fmt: skip


def _measured(
    options: EvaluationOptions,
    values: dict[str, Any],
    bundle: Bundle,
    rows: Rows,
    known: tuple[Rows | None, AuditReport | None],
    scores: Path | None,
) -> Report:
    """Measure the loaded model: figures, alarms, audit, cost."""
    decoding = options.generates(options.seed)
    values |= measure(
        bundle.model, bundle.tokenizer, options.task, rows, options.part, options.measuring, decoding, scores,
        None if options.predictions is None else Path(options.predictions),
    )  # fmt: skip
    values["predictions"] = options.predictions
    context = min(options.measuring.context or bundle.model.config.context, bundle.model.config.context)
    examples = encoded(options.task, rows, bundle.tokenizer, context, options.probes)
    learned, found = known
    checks = _checks(options, bundle, examples, learned, context)
    leaks = [alarm.describe() for alarm in leak_alarms(found)]
    values["alarms"] = fired_first([*leaks, *checks.alarms(bundle.model), *values["alarms"]])
    values["audit"] = None if found is None else found.describe()
    values["cost"] = options.cost(bundle, options.dtype, options.memory)
    values = plain(values)
    return Report(values, show_report(values))
