"""``limbeck evaluate``: measure a model on a task's rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import Example
from limbeck.data.readers import Dialect, Rows, read
from limbeck.data.splits import split_rows
from limbeck.data.tokenizer import check_alike
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.checks import Checks, ProbeLevel, audited, encoded, fired_first, leak_alarms
from limbeck.jobs.harness import Asked, harness_values, run_harness
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.evaluation import measure, show_report
from limbeck.jobs.source import Parts, device_of, dtype_of
from limbeck.jobs.zero_shot import ZeroShotRows
from limbeck.measure.cost import Cost, cost
from limbeck.measure.footprint import footprint
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.tasks.table import AnyTask
from limbeck.tasks.task import Measuring
from limbeck.tasks.text import Text

__all__ = ["Evaluate"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_HARNESS: dict[str, JsonValue] = {"section": "harness"}
_OWN_WAY = (
    "data", "part", "columns", "separator", "dialect", "split_by", "fractions", "task", "decoding", "predictions",
    "probes", "learned", "overlap", "base", "general", "zero_shot", "zero_shot_task",
)  # fmt: skip


class Evaluate(ModelSource, ZeroShotRows, Recipe):
    """Measure a model: figures with intervals, their protocol, per-item scores, cost."""

    verb: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "measure a model on a task, with intervals and per-item scores"

    data: str | None = Field(
        None, description="rows: a path, toy:NAME or a Hub id; none: with a harness alone", json_schema_extra=_DATA
    )
    part: Literal["all", "train", "valid", "test"] = Field(
        "all",
        description="the whole, or the part that training with the same fractions calls so",
        json_schema_extra=_DATA,
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our field = their column", json_schema_extra=_DATA
    )
    separator: str = Field(
        "<|endoftext|>", description="line between documents of a text file", json_schema_extra=_DATA
    )
    dialect: Dialect = Field(
        default_factory=Dialect, description="delimiter and quotes of tables of text", json_schema_extra=_DATA
    )
    split_by: str | None = Field(None, description="field by which parts are made", json_schema_extra=_DATA)
    fractions: tuple[float, float, float] = Field(
        (0.7, 0.15, 0.15), description="train, valid and test shares", json_schema_extra=_DATA
    )
    limit: int | None = Field(None, ge=1, description="read only so many rows", json_schema_extra=_DATA)
    task: AnyTask = Field(Text(), description="kind of work")
    measuring: Measuring = Field(default_factory=Measuring, description="how it is measured")
    decoding: Decoding | None = Field(None, description="how it generates; none: the task's choice")
    probes: ProbeLevel = Field("quick", description="further measurements, and the alarms that they give")
    learned: str | None = Field(
        None,
        description="rows that the model was trained on: leaked evaluation rows and text copied from them ring",
        json_schema_extra=_DATA,
    )
    overlap: Literal["list", "refuse"] = Field(
        "list", description="evaluation rows that stand in 'learned': list them, or refuse", json_schema_extra=_DATA
    )
    base: str | None = Field(None, description="the model before its training, against which lost generality is told")
    general: str | None = Field(
        None, description="held-out general text, on which the base is compared too", json_schema_extra=_DATA
    )
    memory: bool = Field(False, description="measure peak memory at load and in use too, in a process of its own")
    predictions: str | None = Field(
        None, description="file for what was generated or chosen for each row, in the task's published format"
    )

    harness: tuple[str, ...] = Field(
        (),
        description="tasks of lm-evaluation-harness, by name or YAML file, instead of a task of this project's own",
        json_schema_extra=_HARNESS,
    )
    harness_path: str | None = Field(None, description="folder of further task files", json_schema_extra=_HARNESS)
    harness_data: dict[str, str] = Field(
        default_factory=dict,
        description="local rows of a task: TASK=FILE, and TASK_examples=FILE to draw examples from",
        json_schema_extra=_HARNESS,
    )
    harness_shots: int | None = Field(
        None, ge=0, description="examples shown; none: as each task says", json_schema_extra=_HARNESS
    )
    harness_chat: bool = Field(
        False, description="put prompts through the model's chat template", json_schema_extra=_HARNESS
    )

    @model_validator(mode="after")
    def _one_way(self) -> Evaluate:
        """Rows and a task of the project's own, or tasks of the harness; what the other way alone reads is refused."""
        fields = type(self).model_fields
        changed = [n for n in fields if getattr(self, n) != fields[n].get_default(call_default_factory=True)]
        if self.harness:
            odd = [n for n in changed if n in _OWN_WAY] + ["generate"] * (not self.measuring.generate)
            if odd:
                raise ValueError(f"{odd[0]} belongs to a task of this project's own: leave it out with a harness")
            return self
        odd = [n for n in changed if n.startswith("harness")]
        if odd:
            raise ValueError(f"{odd[0]} needs tasks: name them with harness")
        for name, needs in (
            ("overlap", "learned"),
            ("general", "base"),
            ("zero_shot", "base"),
            ("zero_shot_task", "base"),
        ):
            if name in changed and getattr(self, needs) is None:
                raise ValueError(f"{name} needs {needs}: name it too")
        if self.base is not None and self.probes == "off":
            raise ValueError("base is what probes compare with: turn them on, or leave it out")
        if self.data is None:
            raise ValueError("there is nothing to measure on: name rows with data, or tasks with harness")
        return self

    def run(self, session: Display) -> Report:
        """Load, measure, report; with ``out`` also write a run folder.

        Raises:
            LimbeckError: model, data or task do not fit, or the disk refused a write.
        """
        if self.harness:
            return self._harness(session)
        assert self.data is not None, "checked when the recipe was built"
        self._check_predictions()
        rows = self.task.read(
            self.data, columns=self.columns, limit=self.limit, separator=self.separator, dialect=self.dialect
        )
        if self.part != "all":
            shares = {k: f for k, f in zip(("train", "valid", "test"), self.fractions, strict=True) if f > 0}
            if self.part not in shares:
                raise ConfigError(f"the {self.part} share of 'fractions' is zero: give it one, or measure another part")
            rows = split_rows(rows, self.split_by or self.task.split_by, shares)[self.part]
        known = self._known(rows)
        session.say(*rows.notes, f"measuring {self.model} on {len(rows)} rows of {self.data}")
        bundle = self.load(self.dtype, self.device)
        values: dict[str, Any] = {
            "verb": self.verb,
            "model": self.model,
            "data": {self.part: rows.describe()},
        }
        if self.out is None:
            return self._measured(values, bundle, rows, known, None)
        with Run.create(Path(self.out), self) as run:
            if run.finished and (self.predictions is None or Path(self.predictions).is_file()):
                session.say(run.describe())
                return Report(run.report(), show_report(run.report()))
            run.provenance(seed=self.seed, data={self.part: rows.hash})
            report = self._measured(
                {**values, "run": str(run.path)}, bundle, rows, known, run.scores / f"{self.part}.jsonl"
            )
            run.finish(report.values)
            return report

    def _harness(self, session: Display) -> Report:
        """The same with tasks of lm-eval; a run folder gets one file of scores a task."""
        session.say(f"measuring {self.model} on {', '.join(self.harness)} through lm-evaluation-harness")
        named = {part: read(source) for part, source in self.harness_data.items()}
        data = {k: rows.describe() for k, rows in named.items()}
        values: dict[str, Any] = {"verb": self.verb, "model": self.model, "data": data}
        if self.out is None:
            return self._asked(values, session, None)
        with Run.create(Path(self.out), self) as run:
            if run.finished:
                session.say(run.describe())
                return Report(run.report(), show_report(run.report()))
            run.provenance(seed=self.seed, data={part: rows.hash for part, rows in named.items()})
            report = self._asked({**values, "run": str(run.path)}, session, run.scores)
            run.finish(report.values)
            return report

    def _asked(self, values: dict[str, Any], session: Display, scores: Path | None) -> Report:
        bundle = self.load(self.dtype, self.device)
        asked = Asked(
            tasks=self.harness, path=self.harness_path, data=self.harness_data, shots=self.harness_shots,
            chat=self.harness_chat, limit=self.limit, seed=self.seed, measuring=self.measuring, quiet=session.quiet,
        )  # fmt: skip
        values |= harness_values(run_harness(bundle, asked), self.measuring, scores)
        for name, part in values["parts"].items():  # what lm-eval had from elsewhere
            items = max((m["items"] for m in part["metrics"].values()), default=0)
            values["data"].setdefault(name, {"source": str(part["protocol"].get("corpus")), "hash": "", "rows": items})
        values["cost"] = self._cost(bundle)
        values = plain(values)
        return Report(values, show_report(values))

    def _cost(self, bundle: Bundle) -> Cost:
        peak = None
        if self.memory:
            dtype, kept = dtype_of(self.dtype), self.keep_codes
            peak = asdict(footprint(self.model, dtype, adapter=self.adapter, keep_codes=kept))
        return cost(bundle.model, bundle.folder, beside=bundle.adapter, peak=peak)

    def _check_predictions(self) -> None:
        """Refuse early what could only be refused after the work."""
        if self.predictions is None:
            return
        if not self.task.predicts(self.measuring):
            raise ConfigError(
                f"task '{self.task.name}' predicts nothing for each row, so that there is nothing to write to "
                f"{self.predictions}: leave out --predictions{'' if self.measuring.generate else ', or --no-generate'}"
            )
        if Path(self.predictions).is_dir():
            raise ConfigError(f"{self.predictions} is a folder: name a file for the predictions")

    def _known(self, rows: Rows) -> tuple[Rows | None, AuditReport | None]:
        """The rows that the model learned, and what of ``rows`` stands in them.

        Raises:
            DataError: some does, and that is to be refused.
        """
        if self.learned is None:
            return None, None
        learned = self.task.read(
            self.learned, columns=self.columns, limit=None, separator=self.separator, dialect=self.dialect
        )
        _, found = audited(Parts(learned, None, rows), self.overlap, self.task)
        return learned, found

    def _checks(self, bundle: Bundle, examples: list[Example], learned: Rows | None, context: int) -> Checks:
        base, general, train = None, [], []
        if self.base is not None:
            before = load_bundle(self.base, dtype_of(self.dtype), device_of(self.device))
            sizes = (before.model.config.vocab_size, bundle.model.config.vocab_size)
            check_alike(before.tokenizer, bundle.tokenizer, *sizes)
            base = before.model
        if self.general is not None:
            text = Text()
            read_text = text.read(self.general, columns={}, limit=None, separator=self.separator)
            general = encoded(text, read_text, bundle.tokenizer, context, self.probes)
        if learned is not None and self.probes != "off":
            train = self.task.encode(learned, bundle.tokenizer, context)[0]
        decoding, batch_size = self.decoding or self.task.decoding(), self.measuring.batch_size
        return Checks.of(
            self.probes, bundle.tokenizer, examples, decoding,
            base=base, train=train, general=general, batch_size=batch_size, seed=self.seed,
            zero_shot=self.zero_shot_probe(self.probes, self.task, base, bundle.tokenizer, batch_size),
        )  # fmt: skip

    def _measured(
        self,
        values: dict[str, Any],
        bundle: Bundle,
        rows: Rows,
        known: tuple[Rows | None, AuditReport | None],
        scores: Path | None,
    ) -> Report:
        decoding = (self.decoding or self.task.decoding()).seeded(self.seed)
        values |= measure(
            bundle.model, bundle.tokenizer, self.task, rows, self.part, self.measuring, decoding, scores,
            None if self.predictions is None else Path(self.predictions),
        )  # fmt: skip
        values["predictions"] = self.predictions
        context = min(self.measuring.context or bundle.model.config.context, bundle.model.config.context)
        examples = encoded(self.task, rows, bundle.tokenizer, context, self.probes)
        learned, found = known
        checks = self._checks(bundle, examples, learned, context)
        leaks = [alarm.describe() for alarm in leak_alarms(found)]
        values["alarms"] = fired_first([*leaks, *checks.alarms(bundle.model), *values["alarms"]])
        values["audit"] = None if found is None else found.describe()
        values["cost"] = self._cost(bundle)
        values = plain(values)
        return Report(values, show_report(values))
