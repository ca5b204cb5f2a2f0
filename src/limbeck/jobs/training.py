"""The training that every training verb runs; it branches on no task, objective or technique.

A verb hands a ``TrainingJob`` its options and functions: how to start, the data, the objective, and what else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import collate
from limbeck.data.batches import fixed_batches
from limbeck.formats.hub import commits_of
from limbeck.formats.load import save_bundle
from limbeck.jobs.checks import Checks, ProbeLevel
from limbeck.jobs.estimate import FirstMinute, announce, dry_run, needs
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import DataSteps, PreparedTraining
from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.reports.ending import described_base
from limbeck.jobs.reports.evaluation import measure, show_report
from limbeck.jobs.reports.limits import clamped, unlike
from limbeck.jobs.source import Parts, device_of
from limbeck.jobs.start import Encoded, Start
from limbeck.measure.cost import cost, peak_memory
from limbeck.measure.held_out import HeldOut
from limbeck.measure.spikes import kept_start, spikes
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.techniques.technique import apply_all, convert_all
from limbeck.train.distributed import World, group, world
from limbeck.train.loop import TrainResult, train
from limbeck.train.stream import Stream

__all__ = ["AnyStream", "TrainingJob", "task_objective"]

AnyStream = Stream[Any]
"""What a training draws micro-batches from."""


def task_objective(prepared: PreparedTraining) -> AnyObjective:
    """Return the task's own objective: what is learned without a teacher, and what is watched on validation rows."""
    return prepared.options.task.objective()


def _watch_the_task(prepared: PreparedTraining, objective: AnyObjective) -> AnyObjective:
    return task_objective(prepared)


def _examples_of_the_data(prepared: PreparedTraining) -> Encoded:
    return prepared.data


def _stream_of_the_data(prepared: PreparedTraining) -> AnyStream:
    return prepared.stream


def _nothing_more(prepared: PreparedTraining, objective: AnyObjective) -> Mapping[str, Any]:
    return {}


def _unknown_limit(model: Decoder, device: torch.device) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Train a model on rows of a task, save it, and measure what came of it.

    Attributes:
        options: of the training; a run folder holds them as its recipe.
        start: builds or loads the model to train, given the rows and the device.
        data: reads, audits, tokenises and batches the data.
        objective: what the model, which has its techniques, is to learn.
        watched: what is measured on validation rows during the training, given the objective that is learned; the
            task's own, so that runs can be compared.
        examples: the examples to learn from, once the run folder is open; those of the data.
        live: what micro-batches are drawn from once the model trains; the data's stream, or one that the model itself
            writes to.
        extras: further values for the report, given the finished model and the objective that made it.
        limit: share of the device's limit that one token a second takes; 0: not known.
        planned_rate: FLOP/s of the device that a dry run plans for; None: this one, measured.
    """

    options: TrainingOptions
    start: Callable[[Parts, torch.device], Start]
    data: DataSteps
    objective: Callable[[PreparedTraining], AnyObjective] = task_objective
    watched: Callable[[PreparedTraining, AnyObjective], AnyObjective] = _watch_the_task
    examples: Callable[[PreparedTraining], Encoded] = _examples_of_the_data
    live: Callable[[PreparedTraining], AnyStream] = _stream_of_the_data
    extras: Callable[[PreparedTraining, AnyObjective], Mapping[str, Any]] = _nothing_more
    limit: Callable[[Decoder, torch.device], float] = _unknown_limit
    planned_rate: float | None = None

    def run(self, display: Display) -> Report:
        """Train, save, measure, report; under torchrun on all ranks together, of which the first reports.

        Raises:
            LimbeckError: the data, the model or the techniques do not fit; the loss diverged; Ctrl-C.
        """
        with group(device_of(self.options.device)) as here:
            return self._on_rank(display if here.main else Display.silent(), here)

    def _on_rank(self, display: Display, here: World) -> Report:
        """``run`` on one rank of several; those beside the first write nothing and report nothing."""
        options = self.options
        done = here.on_main(lambda: not options.dry_run and (options.folder / "report.json").is_file())
        if done:
            with self._open(here) as run:
                display.say(run.describe())
                return Report(run.report(), show_report(run.report())) if here.main else Report({})
        prepared = self._prepare(display, here)
        if options.dry_run:
            planned = self._planned(prepared)
            return planned if here.main else Report({})
        with self._open(here) as run:
            hashes = {k: v["hash"] for k, v in prepared.parts.describe().items()}
            here.on_main(
                lambda: run.provenance(seed=options.seed, data=hashes, models=commits_of(options.model_dump()))
            )
            lowered = clamped(options.context, prepared.data.context, "training")
            display.say(f"{options.verb}: {run.describe()}", *prepared.parts.train.notes, *lowered)
            prepared = self._with_examples(replace(prepared, run=run), here)
            objective = here.in_turn(lambda: self.objective(prepared))
            result = self._train(prepared, objective)
            return here.first(lambda: self._conclude(prepared, objective, result)) or Report({})

    def _open(self, here: World) -> Run:
        """Return the run folder: rank 0 makes and locks it, the others look into it."""
        return here.first(lambda: Run.create(self.options.folder, self.options)) or Run.open(self.options.folder)

    def _prepare(self, display: Display, here: World) -> PreparedTraining:
        options = self.options
        torch.manual_seed(options.seed)
        device = device_of(options.device)
        parts, found = self.data.audit(self.data.read(), display.say)
        start = here.in_turn(lambda: self.start(parts, device))
        data = self.data.encode(parts, start)
        settings = options.settings(bool(data.valid))
        checks = _checks(options, start, data, found)  # asks the base, which techniques may change in place
        torch.manual_seed(options.seed)
        size = options.measuring.batch_size
        looked_at = data.train[: 8 * size] if options.techniques else []
        calibration = fixed_batches(looked_at, size, data.context, start.tokenizer.pad_id, collate)
        model = apply_all(options.techniques, options.task.prepare(start.model), calibration)
        stream = self.data.stream(data, start)
        return PreparedTraining(options, model, start, parts, data, stream, checks, settings, device, display)

    def _planned(self, prepared: PreparedTraining) -> Report:
        """Show examples, memory and time; nothing is written."""
        stream, rows = prepared.stream, prepared.parts.train
        shown = stream.at(0)
        return dry_run(
            prepared.model, prepared.start.tokenizer, self.objective(prepared), stream, prepared.settings, shown,
            [row.id for row in rows], batch_size=self.options.batch_size, rate=self.planned_rate,
        )  # fmt: skip

    def _with_examples(self, prepared: PreparedTraining, here: World) -> PreparedTraining:
        """Take the examples to learn from, and a stream of them where they are not the data's."""
        data = here.in_turn(lambda: self.examples(prepared))
        if data is prepared.data:
            return prepared
        return replace(prepared, data=data, stream=self.data.stream(data, prepared.start))

    def _train(self, prepared: PreparedTraining, objective: AnyObjective) -> TrainResult:
        options, settings, device = self.options, prepared.settings, prepared.device
        watched = self.watched(prepared, objective)
        held_out = [
            HeldOut(watched, prepared.fixed(some, self.data.collate_fn), name, size)
            for name, some, size in prepared.data.held_out()
        ]
        model = prepared.model.to(device)
        needed, here = needs(model, prepared.stream, settings), world()
        drawn = self.live(prepared)
        limit = here.on_main(lambda: self.limit(model, device)) / here.size  # each rank has such a device
        say = prepared.display.say
        say(announce(needed, limit))
        with peak_memory(device):
            return train(
                model,
                objective,
                drawn,
                settings,
                evaluations=[*held_out, *prepared.checks.evaluations()],
                run=prepared.run,
                seed=options.seed,
                device=device,
                progress=prepared.display.progress,
                on_step=FirstMinute(needed, options.batch_size, device, say, compiled=settings.compile),
                utilisation=limit,
            )

    def _conclude(self, prepared: PreparedTraining, objective: AnyObjective, result: TrainResult) -> Report:
        """Convert and save the model, measure it on the part that the report is about, and report."""
        options, start, data, run = self.options, prepared.start, prepared.data, prepared.opened
        trainable = prepared.model.count_parameters(trainable=True)
        model, deployed_specs = convert_all(options.techniques, prepared.model.eval())
        prepared = replace(prepared, model=model)
        save_bundle(
            model,
            options.task.equip(start.tokenizer),
            run.model,
            generation=start.generation,
            deployed_specs=(*start.deployed_specs, *deployed_specs),
        )
        values: dict[str, Any] = {
            "verb": options.verb,
            "run": str(run.path),
            "start": {"source": start.source, **start.facts},
            "data": {**prepared.parts.describe(), "encoding": data.report.describe()},
            "training": result,
            **self.extras(prepared, objective),
            **_measured(prepared),
        }
        seen = [*spikes(run.metrics()), *kept_start(result.weights_step, result.steps)]
        before = [*values.get("alarms", []), *(a.describe() for a in seen)]
        values |= prepared.checks.told(model, data.report, before)
        values["cost"] = cost(model, run.model, trainable=trainable)
        if (base := _base(start)) is not None:
            values["base"] = described_base(base, run.model)
        values = plain(values)
        run.finish(values)
        return Report(values, show_report(values))


def _base(start: Start) -> str | None:
    """Return the name of the model that the result is smaller or larger than: the teacher, or what it began from."""
    if start.teacher is not None:
        return start.teacher.source
    return None if start.fresh else start.source


def _measured(prepared: PreparedTraining) -> dict[str, Any]:
    """Figures on the part that the report is about, where there is one, and what must be said of lengths."""
    options, context = prepared.options, prepared.data.context
    lowered = clamped(options.context, context, "training")
    if prepared.parts.final is None:
        return {"notes": {"told": lowered}}
    name, rows = prepared.parts.final
    prepared.display.say(f"measuring on {len(rows)} {name} rows")
    values = measure(
        prepared.model,
        prepared.start.tokenizer,
        options.task,
        rows,
        name,
        options.measuring,
        options.generates(options.seed),
        prepared.opened.scores / f"{name}.jsonl",
    )
    values["notes"]["told"] += lowered + unlike(context, values, bool(prepared.data.valid))
    return values


def _checks(options: TrainingOptions, start: Start, data: Encoded, found: AuditReport | None) -> Checks:
    level: ProbeLevel = "off" if options.dry_run else options.probes
    base, size = None if start.fresh else start.model, options.measuring.batch_size
    return Checks.of(
        level,
        start.tokenizer,
        data.valid or data.train,
        options.generates(),
        base=base,
        train=data.train,
        general=options.general_text(level, start.tokenizer, data.context),
        zero_shot=options.zero_shot_probe(level, options.task, base, start.tokenizer, size),
        batch_size=size,
        seed=options.seed,
        audit=found,
    )
