"""The recipe that every training verb shares; it branches on no task, objective or technique."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import Example, collate
from limbeck.data.batches import CollateFn, fixed_batches
from limbeck.formats.load import save_bundle
from limbeck.jobs.checks import Checks, ProbeLevel, audited
from limbeck.jobs.estimate import FirstMinute, announce, dry_run, needs
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.reports.evaluation import measure, show_report
from limbeck.jobs.reports.limits import clamped, unlike
from limbeck.jobs.source import Parts, device_of
from limbeck.jobs.start import Encoded, Source, Start
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

__all__ = ["AnyStream", "Encoded", "TrainingJob", "Start"]

AnyStream = Stream[Any]
"""What a training draws micro-batches from."""


class TrainingJob(TrainingOptions):
    """Train a model on rows of a task and measure what came of it."""

    on_ranks: ClassVar[bool] = True

    @abstractmethod
    def start(self, parts: Parts, device: torch.device) -> Start:
        """Build or load the model to train."""

    def extras(self, model: Decoder, objective: AnyObjective, start: Start, data: Encoded, run: Run) -> dict[str, Any]:
        """Further values for the report, told of the finished ``model`` and of the objective that made it."""
        return {}

    @abstractmethod
    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """What ``model``, which has its techniques, is to learn; ``run`` is None when nothing may be written."""

    def watched(self, objective: AnyObjective) -> AnyObjective:
        """What is measured on validation rows during the training: the task's own, so that runs can be compared."""
        return self.task.objective()

    def collate_fn(self, rows: Sequence[Sequence[Example]], pad_id: int) -> Any:
        """A batch of what is learned from."""
        return collate(rows, pad_id)

    def live(self, stream: Source, model: Decoder, data: Encoded, start: Start, run: Run) -> AnyStream:
        """What is drawn from once ``model`` trains: ``stream``, or one that ``model`` itself writes to."""
        return stream

    def examples(self, data: Encoded, start: Start, run: Run) -> Encoded:
        """The examples to learn from, once the run's folder is open: those of the data."""
        return data

    def audited(self, parts: Parts, say: Callable[[str], None]) -> tuple[Parts, AuditReport | None]:
        """The rows that are left after the audit, and what it found; None where it is off.

        Raises:
            DataError: overlaps are refused, or nothing would be left.
        """
        return audited(parts, self.audit, self.task)

    @property
    def rate_of_plan(self) -> float | None:
        """FLOP/s of the device that a dry run plans for; None: this one, measured."""
        return None

    def utilisation(self, model: Decoder, device: torch.device) -> float:
        """Share of the device's limit that one token a second takes; 0: not told."""
        return 0.0

    def run(self, session: Display) -> Report:
        """Train, save, measure, report; under torchrun on all ranks together, of which the first reports.

        Raises:
            LimbeckError: the data, the model or the techniques do not fit; the loss diverged; Ctrl-C.
        """
        with group(device_of(self.device)) as here:
            return self._fit(session if here.main else Display.silent(), here)

    def _fit(self, session: Display, here: World) -> Report:
        """``run`` on one rank of several; those beside the first write nothing and report nothing."""
        done = here.on_main(lambda: not self.dry_run and (self.folder / "report.json").is_file())
        if done:
            with self._open(here) as run:
                session.say(run.describe())
                return Report(run.report(), show_report(run.report())) if here.main else Report({})
        torch.manual_seed(self.seed)
        device = device_of(self.device)
        parts, found = self.audited(self.parts(self.task), session.say)
        start = here.in_turn(lambda: self.start(parts, device))
        data = self._encode(parts, start)
        settings = self.settings(bool(data.valid))
        checks = self._checks(start, data, found)  # asks the base, which techniques may change in place
        torch.manual_seed(self.seed)
        looked_at = data.train[: 8 * self.measuring.batch_size] if self.techniques else []
        calibration = self._fixed(looked_at, start, data.context)
        model = apply_all(self.techniques, self.task.prepare(start.model), calibration)
        stream = self._stream(data.train, start, data.context)
        if self.dry_run:
            shown, names = stream.at(0), [row.id for row in parts.train]
            learned = self.objective(model, start, data, parts, None)
            planned = dry_run(
                model, start.tokenizer, learned, stream, settings, shown, names,
                batch_size=self.batch_size, rate=self.rate_of_plan,
            )  # fmt: skip
            return planned if here.main else Report({})
        with self._open(here) as run:
            hashes = {k: v["hash"] for k, v in parts.describe().items()}
            here.on_main(lambda: run.provenance(seed=self.seed, data=hashes))
            lowered = clamped(self.context, data.context, "training")
            session.say(f"{self.verb}: {run.describe()}", *parts.train.notes, *lowered)
            given, data = data, here.in_turn(lambda: self.examples(data, start, run))
            if data is not given:
                stream = self._stream(data.train, start, data.context)
            objective = here.in_turn(lambda: self.objective(model, start, data, parts, run))
            result = self._train(model, objective, stream, data, start, checks, run, device, session)
            report = here.first(
                lambda: self._conclude(model, objective, start, parts, data, checks, result, run, session)
            )
            return report or Report({})

    def _open(self, here: World) -> Run:
        """The run folder: rank 0 makes and locks it, the others look into it."""
        return here.first(lambda: Run.create(self.folder, self)) or Run.open(self.folder)

    def _encode(self, parts: Parts, start: Start) -> Encoded:
        context = min(self.context or start.context, start.context)
        examples, report = self.task.encode(parts.train, start.tokenizer, context)
        valid: list[Example] = []
        if parts.valid is not None:
            valid, _ = self.task.encode(parts.valid, start.tokenizer, context)
        return Encoded(examples, valid, report, context)

    def _checks(self, start: Start, data: Encoded, found: AuditReport | None) -> Checks:
        level: ProbeLevel = "off" if self.dry_run else self.probes
        base, size = None if start.fresh else start.model, self.measuring.batch_size
        return Checks.of(
            level,
            start.tokenizer,
            data.valid or data.train,
            self.decoding or self.task.decoding(),
            base=base,
            train=data.train,
            general=self.general_text(level, start.tokenizer, data.context),
            zero_shot=self.zero_shot_probe(level, self.task, base, start.tokenizer, size),
            batch_size=size,
            seed=self.seed,
            audit=found,
        )

    def _stream(self, examples: Sequence[Example], start: Start, context: int) -> Source:
        return self.shuffled(examples, start.tokenizer.pad_id, context, self.collate_fn)

    def _fixed(
        self, examples: Sequence[Example], start: Start, context: int, collate_fn: CollateFn = collate
    ) -> list[Any]:
        return fixed_batches(examples, self.measuring.batch_size, context, start.tokenizer.pad_id, collate_fn)

    def _train(
        self,
        model: Decoder,
        objective: AnyObjective,
        stream: Source,
        data: Encoded,
        start: Start,
        checks: Checks,
        run: Run,
        device: torch.device,
        session: Display,
    ) -> TrainResult:
        watched = self.watched(objective)
        held_out = [
            HeldOut(watched, self._fixed(some, start, data.context, self.collate_fn), name, size)
            for name, some, size in data.held_out()
        ]
        model, settings = model.to(device), self.settings(bool(data.valid))
        needed, here = needs(model, stream, settings), world()
        drawn = self.live(stream, model, data, start, run)
        limit = here.on_main(lambda: self.utilisation(model, device)) / here.size  # each rank has such a device
        session.say(announce(needed, limit))
        with peak_memory(device):
            return train(
                model,
                objective,
                drawn,
                settings,
                evaluations=[*held_out, *checks.evaluations()],
                run=run,
                seed=self.seed,
                device=device,
                progress=session.progress,
                on_step=FirstMinute(needed, self.batch_size, device, session.say, compiled=settings.compile),
                utilisation=limit,
            )

    def _conclude(
        self,
        model: Decoder,
        objective: AnyObjective,
        start: Start,
        parts: Parts,
        data: Encoded,
        checks: Checks,
        result: TrainResult,
        run: Run,
        session: Display,
    ) -> Report:
        trainable = model.count_parameters(trainable=True)
        model, deployed_specs = convert_all(self.techniques, model.eval())
        deployed_specs = (*start.deployed_specs, *deployed_specs)
        save_bundle(
            model,
            self.task.equip(start.tokenizer),
            run.model,
            generation=start.generation,
            deployed_specs=deployed_specs,
        )
        values: dict[str, Any] = {
            "verb": self.verb,
            "run": str(run.path),
            "start": {"source": start.source, **start.facts},
            "data": {**parts.describe(), "encoding": data.report.describe()},
            "training": result,
            **self.extras(model, objective, start, data, run),
        }
        lowered = clamped(self.context, data.context, "training")
        final = parts.final
        if final is not None:
            name, rows = final
            session.say(f"measuring on {len(rows)} {name} rows")
            values |= measure(
                model,
                start.tokenizer,
                self.task,
                rows,
                name,
                self.measuring,
                (self.decoding or self.task.decoding()).seeded(self.seed),
                run.scores / f"{name}.jsonl",
            )
            values["notes"]["told"] += lowered + unlike(data.context, values, bool(data.valid))
        else:
            values["notes"] = {"told": lowered}
        seen = [*spikes(run.metrics()), *kept_start(result.weights_step, result.steps)]
        values |= checks.told(model, data.report, [*values.get("alarms", []), *(a.describe() for a in seen)])
        values["cost"] = cost(model, run.model, trainable=trainable)
        values = plain(values)
        run.finish(values)
        return Report(values, show_report(values))
