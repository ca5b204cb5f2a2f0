"""Before and after every run: the audit of its data, the probes of its model, and their alarms for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from limbeck.data.audit.report import AuditReport, audit
from limbeck.data.audit.rows import wordy_fields
from limbeck.data.batch import Example, collate
from limbeck.data.prompts import EncodingReport
from limbeck.data.rows import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.jobs.source import Parts
from limbeck.measure.alarm import Alarm, Probe, Subject
from limbeck.measure.probes.memory import CopiedRun, Memorised, TrainingIndex
from limbeck.measure.probes.model import Calibration, Generality, GeneralText
from limbeck.measure.probes.table import ProbeEvaluation, run_probes
from limbeck.measure.probes.writing import Collapsed, Echo, Ending, Length, Looping, Repetition, write
from limbeck.measure.probes.zero_shot import ZeroShot
from limbeck.model.decoder import Decoder
from limbeck.tasks.task import Task

__all__ = ["Checks", "OnOverlap", "ProbeLevel", "audited", "encoded", "fired_first", "leak_alarms", "show_alarms"]

ProbeLevel = Literal["off", "quick", "full"]
OnOverlap = Literal["list", "drop", "refuse", "off"]

_WRITTEN = {"quick": 16, "full": 64}
_CALIBRATED = {"quick": 64, "full": 512}
_BASE_TEXTS = {"quick": 8, "full": 32}
_LEAKED = 0.01  # share of evaluation rows
_CUT = 0.05  # share of training rows


def audited(parts: Parts, on: OnOverlap, task: Task) -> tuple[Parts, AuditReport | None]:
    """Compare training rows with validation and test rows and with each other, and do what ``on`` says.

    Raises:
        DataError: ``refuse``, and there are overlaps; or ``drop`` would leave nothing to train on.
    """
    if on == "off":
        return parts, None
    sets = {name: rows for name, rows in (("valid", parts.valid), ("test", parts.test)) if rows is not None}
    fields = [name for name in wordy_fields(parts.train) if name in task.required] or list(task.required)
    found = audit(parts.train, sets, within=True, fields=fields)
    train, found = found.decide(on, parts.train)
    return replace(parts, train=train), found


def leak_alarms(found: AuditReport | None) -> list[Alarm]:
    """Return the alarm of evaluation rows that stand in the training text; none where there was nothing to compare."""
    if found is None or not found.against:
        return []
    rows = sum(found.against.values())
    left = 0 if found.decision == "drop" else found.leaked()
    told = "; ".join([f"{found.leaked()} of {rows} evaluation rows share half or more with a training row"]
                     + list(found.sentences()))  # fmt: skip
    done = f"; {len(found.dropped)} training rows were dropped" if found.dropped else ""
    return [Alarm("leakage", left / rows, _LEAKED, left / rows > _LEAKED, f"{told}{done}")]


def _data_alarms(found: AuditReport | None, report: EncodingReport) -> list[Alarm]:
    """Alarms of the data: evaluation rows that stand in the training text, rows cut to the context."""
    out = leak_alarms(found)
    cut = len(report.truncated) + len(report.too_long)
    share = cut / max(report.rows, 1)
    told = f"{cut} of {report.rows} training rows were longer than the context; up to {_CUT:.0%} are expected"
    return [*out, Alarm("cut-rows", share, _CUT, share > _CUT, told)]


@dataclass(frozen=True, eq=False)
class Checks:
    """The probes of one run and what they need.

    Attributes:
        model_probes: look at the model alone.
        writing_probes: look at what it writes.
        tokenizer: the model's.
        prompts: held-out examples that it continues.
        decoding: how it writes.
        batch_size: sequences at once.
        level: ``quick`` asks the model's probes in the loop and all at the end, ``full`` asks all always.
        audit: what was found in the data.
    """

    model_probes: tuple[Probe, ...]
    writing_probes: tuple[Probe, ...]
    tokenizer: Tokenizer
    prompts: tuple[Example, ...]
    decoding: Decoding
    batch_size: int
    level: ProbeLevel
    audit: AuditReport | None = None

    @classmethod
    def of(
        cls,
        level: ProbeLevel,
        tokenizer: Tokenizer,
        held_out: Sequence[Example],
        decoding: Decoding,
        *,
        base: Decoder | None = None,
        train: Sequence[Example] = (),
        general: Sequence[Example] = (),
        zero_shot: ZeroShot | None = None,
        batch_size: int = 16,
        seed: int = 0,
        audit: AuditReport | None = None,
    ) -> Checks:
        """Choose the probes.

        Args:
            level: ``off`` has none.
            tokenizer: the model's.
            held_out: examples to continue, and to be calibrated on.
            decoding: how the model writes.
            base: the model before the run, for lost generality; None: random weights, or unknown.
            train: examples that are learned, for memorisation.
            general: held-out general text; the base's loss on it is measured now.
            zero_shot: a task that is not trained, with the base's answers.
            batch_size: sequences at once.
            seed: of the text that the base writes.
            audit: what was found in the data.
        """
        if level == "off":
            return cls((), (), tokenizer, (), decoding, batch_size, level, audit)
        some = _spread(held_out, _CALIBRATED[level])
        rows = [some[at : at + batch_size] for at in range(0, len(some), batch_size)]
        probes: list[Probe] = [Calibration(tuple(collate([[e] for e in row], tokenizer.pad_id) for row in rows))]
        if base is not None and base.config.classes is None:
            probes.append(Generality.of(base, tokenizer, texts=_BASE_TEXTS[level], seed=seed))
            if general:
                probes.append(GeneralText.of(base, general, batch_size=batch_size))
        if zero_shot is not None:
            probes.append(zero_shot)
        writing: list[Probe] = [Ending(), Length(), Looping(), Repetition(), Echo(), Collapsed()]
        if train:
            index = TrainingIndex.of(train)
            writing += [Memorised(index), CopiedRun(index)]
        prompts = tuple(_spread(held_out, _WRITTEN[level]))
        return cls(tuple(probes), tuple(writing), tokenizer, prompts, decoding, batch_size, level, audit)

    def _subject(self, model: Decoder, writes: bool) -> Subject:
        if not writes:
            return Subject(model)
        out = write(model, self.tokenizer, self.prompts, self.decoding, batch_size=self.batch_size)
        return Subject(model, out)

    def evaluations(self) -> list[ProbeEvaluation]:
        """Return the evaluations that the training loop runs."""
        if self.level == "off":
            return []
        writes = self.level == "full"
        probes = self.model_probes + (self.writing_probes if writes else ())
        return [ProbeEvaluation(probes, lambda model: self._subject(model, writes))]

    def alarms(self, model: Decoder) -> list[dict[str, Any]]:
        """Return the alarms of the finished model, as plain values."""
        if self.level == "off":
            return []
        found = run_probes(self.model_probes + self.writing_probes, self._subject(model, True))
        return [alarm.describe() for alarm in found]

    def told(self, model: Decoder, report: EncodingReport, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the part of a training's report: ``audit``, and all ``alarms``, those of the scores (``before``)
        included.
        """
        data = [alarm.describe() for alarm in _data_alarms(self.audit, report)]
        return {
            "alarms": fired_first([*data, *self.alarms(model), *before]),
            "audit": None if self.audit is None else self.audit.describe(),
        }


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most ``count`` of ``examples``, evenly over the whole."""
    step = max(1, -(-len(examples) // count))
    return list(examples[::step])


def encoded(task: Task, rows: Rows, tokenizer: Tokenizer, context: int, level: ProbeLevel) -> list[Example]:
    """Return the examples of ``rows`` that probes of this level look at."""
    if level == "off":
        return []
    return task.encode(rows[: _CALIBRATED[level]], tokenizer, context)[0]


def fired_first(alarms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same alarms, those that fired before the silent ones."""
    return sorted(map(dict, alarms), key=lambda alarm: not alarm["fired"])


def show_alarms(alarms: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Return fired alarms for people, a line each; else one line that says how many were silent."""
    fired = [Text(f"alarm: {a['name']}: {a['sentence']}", style="bold red") for a in alarms if a["fired"]]
    if fired or not alarms:
        return [*fired]
    return [Text(f"alarms: none of {len(alarms)}", style="green")]
