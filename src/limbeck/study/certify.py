"""``limbeck certify``: is a smaller model worse than its base, tested in sequence on several harms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, JsonValue
from rich.console import RenderableType
from rich.text import Text as Words

from limbeck.data.readers import Rows, read
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.comparison import evaluated
from limbeck.jobs.measured_task import MeasuredTask
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.reports.quantization import alternated
from limbeck.jobs.source import Reading, device_of, dtype_of
from limbeck.measure.cost import SpeedProtocol, disk_bytes
from limbeck.measure.scores import Scores, align
from limbeck.storage import plain, write_json, write_text
from limbeck.study.certificate import (
    Measured,
    Verdict,
    card,
    folder_hash,
    judge,
    measured_bytes,
    measured_speed,
    seal,
    sensitivity,
)
from limbeck.study.harms import Grams, Harm, Margins, harms
from limbeck.study.sample_logs import read_samples
from limbeck.tasks.table import AnyTask
from limbeck.tasks.text import Text

__all__ = ["Certify"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_TEST: dict[str, JsonValue] = {"section": "test"}


@dataclass(frozen=True, slots=True)
class _Side:
    """What one model was measured to do on some items."""

    scores: Scores
    texts: Mapping[str, str]
    protocol: Mapping[str, Any]


class Certify(MeasuredTask, Reading, Recipe):
    """Test whether SMALLER is worse than BASE: three answers, valid whenever the test stops.

    With --data both models are evaluated item by item until every harm is decided. Without it BASE and SMALLER are two
    evaluated runs, or two sample logs of lm-evaluation-harness, whose items are gone through in a drawn order.
    """

    verb: ClassVar[str] = "certify"
    summary: ClassVar[str] = "test in sequence whether a smaller model is worse, and bind the verdict to the files"
    files: ClassVar[tuple[str, ...] | None] = ("certificate.json", "certificate.md")

    base: str = Field(
        description="the base: a model with --data, else a run or a sample log", json_schema_extra={"positional": True}
    )
    smaller: str = Field(description="the smaller model, of the same kind", json_schema_extra={"positional": True})
    data: str | None = Field(None, description="rows to test on: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)
    learned: str | None = Field(
        None, description="training text: copying from it is a harm (memorisation)", json_schema_extra=_DATA
    )
    zero_shot: str | None = Field(
        None, description="rows of a task that was not trained: lost generality", json_schema_extra=_DATA
    )
    zero_shot_task: AnyTask = Field(Text(), description="kind of work of zero_shot")
    part: str = Field("test", description="evaluation of the two runs", json_schema_extra=_DATA)
    margins: Margins = Field(default_factory=Margins, description="largest harm that is accepted, of each kind")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="error rate of each answer", json_schema_extra=_TEST)
    power: float = Field(0.9, gt=0.5, lt=1, description="chance to see the stated difference", json_schema_extra=_TEST)
    discordant: float = Field(
        0.05, gt=0, le=1, description="planned share of answers that change; a wrong plan costs items, never validity",
        json_schema_extra=_TEST,
    )  # fmt: skip
    look: int = Field(64, ge=1, description="items between two looks", json_schema_extra=_TEST)
    speed: SpeedProtocol | None = Field(
        SpeedProtocol(), description="how both are timed, in alternated rounds; none: not timed"
    )

    def run(self, session: Display) -> Report:
        """State what can be seen, test, write certificate.json and certificate.md.

        Raises:
            LimbeckError: a model, run, log or row does not fit.
        """
        found = self._fresh(session) if self.data is not None else self._recorded(session)
        verdict: Verdict = found.pop("verdict")
        values: dict[str, Any] = {"verb": self.verb, "base": self.base, "smaller": self.smaller, **found}
        values["verdict"] = verdict.to_json()
        values["bound"]["protocol"] = _digest(values["protocol"])
        values = plain(values)
        values["seal"] = seal(values)
        if self.out is not None:
            write_json(Path(self.out) / "certificate.json", values)
            write_text(Path(self.out) / "certificate.md", card(values))
        return Report(values, _shown(values))

    def _settings(self) -> dict[str, Any]:
        kept = ("task", "measuring", "margins", "alpha", "power", "discordant", "look", "seed", "zero_shot_task")
        return dict(self.model_dump(mode="json", include=set(kept)))

    def _state(self, session: Display, items: int) -> str:
        """Say before any look what can be seen with so many items."""
        margins = [("accuracy", self.margins.accuracy)]
        least, short = sensitivity(margins, items, self.discordant, self.alpha, self.power)
        told = (
            f"Stated before the first look: {items:,} items can show a difference of {least:.2%} in right answers "
            f"({self.power:.0%} power, error rate {self.alpha:g}) where {self.discordant:.0%} of answers change."
        )
        session.say(told, *short)
        return " ".join([told, *(f"{s}." for s in short)])

    def _recorded(self, session: Display) -> dict[str, Any]:
        """Two runs or two sample logs: their items, in a drawn order, until all is decided."""
        if self.base.endswith(".jsonl") and self.smaller.endswith(".jsonl"):
            a, b = (read_samples(Path(p)) for p in (self.base, self.smaller))
            if a.prompts != b.prompts:
                raise DataError(
                    f"{self.base} and {self.smaller} hold other items or prompts: run both with the same task, shots "
                    "and template"
                )
            sides = _Side(a.scores, a.texts, {}), _Side(b.scores, b.texts, {})
            files = {"base": Path(self.base), "smaller": Path(self.smaller)}
            bound = {f"{name} samples": _file_hash(path) for name, path in files.items()} | {"data": a.prompts}
        else:
            runs = evaluated(self.base, self.part), evaluated(self.smaller, self.part)
            if runs[0].protocol != runs[1].protocol:
                raise ConfigError(
                    f"{self.base} and {self.smaller} were measured in different ways: evaluate both alike"
                )
            sides = tuple(_Side(r.scores, r.predictions, r.protocol) for r in runs)  # type: ignore[assignment]
            bound = {"base scores": _file_hash(runs[0].file), "smaller scores": _file_hash(runs[1].file)}
            for name, run in zip(("base", "smaller"), (self.base, self.smaller), strict=True):
                model = Path(run) / "model"
                if model.is_dir():
                    bound[f"{name} model"] = folder_hash(model)
            bound["data"] = _digest(sorted(runs[0].scores.ids))
        base, smaller = align(sides[0].scores, sides[1].scores)
        order = np.random.default_rng(self.seed).permutation(len(base))
        ids = [base.ids[i] for i in order]
        stated = self._state(session, len(ids))
        every = harms(
            base.select(ids), smaller.select(ids), self.margins, texts=(sides[0].texts, sides[1].texts),
            learned=self._learned(),
        )  # fmt: skip
        verdict = self._in_sequence(every, [])
        protocol = {"settings": self._settings(), "measured": sides[0].protocol}
        return {"stated_before": stated, "verdict": verdict, "protocol": protocol, "bound": bound}

    def _in_sequence(self, every: Sequence[Harm], measured: Sequence[Measured]) -> Verdict:
        """Judge at every look; stop at the first that decides."""
        items = len(every[0].differences)
        verdict = None
        for seen in [*range(self.look, items, self.look), items]:
            cut = [_cut(h, seen) for h in every]
            verdict = judge(cut, measured, alpha=self.alpha, discordant=self.discordant)
            if _decided(verdict):
                break
        assert verdict is not None
        return verdict

    def _fresh(self, session: Display) -> dict[str, Any]:
        """Evaluate both models look by look."""
        assert self.data is not None
        rows = self._drawn(self.rows(self.data, self.task))
        beside = None
        if self.zero_shot is not None:
            beside = self._drawn(
                self.zero_shot_task.read(self.zero_shot, columns={}, limit=self.limit, separator=self.separator)
            )
        stated = self._state(session, len(rows))
        bundles = [
            load_bundle(name, dtype_of(self.dtype), device_of(self.device)) for name in (self.base, self.smaller)
        ]
        measured = self._measured(bundles)
        learned = self._learned()
        sides: list[list[_Side]] = [[], []]
        zero: list[list[_Side]] = [[], []]
        verdict = None
        protocols: list[Any] = []
        for at in range(0, len(rows), self.look):
            for side, other, bundle in zip(sides, zero, bundles, strict=True):
                side.append(self._evaluated(bundle, self.task, rows[at : at + self.look], self.decoding))
                if beside is not None and at < len(beside):
                    other.append(self._evaluated(bundle, self.zero_shot_task, beside[at : at + self.look], None))
            every = self._harms(sides, learned, "")
            if beside is not None:
                every += self._harms(zero, None, "zero-shot ")
            verdict = judge(every, measured, alpha=self.alpha, discordant=self.discordant)
            protocols = [sides[0][0].protocol, *(zero[0][0].protocol for _ in [0] if beside is not None)]
            session.say(f"{min(at + self.look, len(rows)):,} items: {verdict.sentence}")
            if _decided(verdict):
                break
        assert verdict is not None
        bound = {
            f"{name} model": folder_hash(b.folder)
            for name, b in zip(("base", "smaller"), bundles, strict=True)
            if b.folder is not None
        }
        bound["data"] = rows.hash
        if beside is not None:
            bound["zero-shot data"] = beside.hash
        protocol = {"settings": self._settings(), "measured": protocols}
        return {"stated_before": stated, "verdict": verdict, "protocol": protocol, "bound": bound}

    def _harms(self, sides: Sequence[Sequence[_Side]], learned: Grams | None, prefix: str) -> list[Harm]:
        base, smaller = (_joined(side) for side in sides)
        return harms(
            base.scores, smaller.scores, self.margins, texts=(base.texts, smaller.texts), learned=learned, prefix=prefix
        )

    def _evaluated(self, bundle: Bundle, task: AnyTask, rows: Rows, decoding: Decoding | None) -> _Side:
        task.check(bundle.model)
        chosen = (decoding or task.decoding()).seeded(self.seed)
        found = task.evaluate(bundle.model, bundle.tokenizer, rows, self.measuring, chosen)
        return _Side(found.scores, found.predictions, found.protocol)

    def _measured(self, bundles: Sequence[Bundle]) -> list[Measured]:
        base, smaller = bundles
        out = []
        if base.folder is not None and smaller.folder is not None:
            out.append(measured_bytes(disk_bytes(base.folder), disk_bytes(smaller.folder)))
        if self.speed is not None:
            timed = alternated(base.model, smaller.model, self.speed)
            out.append(measured_speed(timed.decode_ratios, self.margins.speed))
        return out

    def _learned(self) -> Grams | None:
        if self.learned is None:
            return None
        rows = read(self.learned, separator=self.separator)
        return Grams.of(str(value) for row in rows for value in row.fields.values())

    def _drawn(self, rows: Rows) -> Rows:
        """Return the rows in a drawn order: a sequential test needs exchangeable items."""
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return Rows.of([rows.rows[i] for i in order], rows.source, rows.dropped)


def _decided(verdict: Verdict) -> bool:
    """Stop where a sampled harm is shown, or none is open: more items cannot settle a measured cost."""
    answers = [j.answer for j in verdict.judgements]
    return "worse" in answers or "cannot be told" not in answers


def _cut(harm: Harm, items: int) -> Harm:
    return Harm(harm.name, harm.unit, harm.margin, harm.differences[:items], harm.answers)


def _joined(parts: Sequence[_Side]) -> _Side:
    rows = [row for part in parts for row in part.scores.rows()]
    texts = {k: v for part in parts for k, v in part.texts.items()}
    return _Side(Scores.of_rows(rows), texts, parts[0].protocol)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _shown(values: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    verdict = values["verdict"]
    lines = [Words(verdict["sentence"], style="bold"), Words(values["stated_before"])]
    lines += [Words(f"- {j['sentence']}") for j in (*verdict["judgements"], *verdict["measured"])]
    return (*lines, Words("SHA-256: " + ", ".join(f"{k} {v[:12]}" for k, v in values["bound"].items()), style="dim"))
