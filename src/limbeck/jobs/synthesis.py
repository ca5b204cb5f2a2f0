"""Training data from a teacher: requests, filters, files and prices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator
from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from limbeck.data.readers import Rows, read
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.run import versions
from limbeck.storage import write_json
from limbeck.synth.collect import Asking, Collected, collect, estimate
from limbeck.synth.datasheet import Datasheet
from limbeck.synth.endpoint import Endpoint, key_from_environment
from limbeck.synth.ledger import Ledger
from limbeck.synth.prompts import KINDS, Kind, Plan
from limbeck.synth.sets import Sifting, figures, filters_of, write_set
from limbeck.synth.teacher import Prices, Sampling, TextTeacher
from limbeck.synth.yields import Yield, sift
from limbeck.train.signals import StopRequest

__all__ = ["SynthesisOptions", "show_yield", "synthesis"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_TEACHER: dict[str, JsonValue] = {"section": "teacher"}
_STORE = "answers.sqlite"


class SynthesisOptions(Recipe):
    """A teacher, a plan of requests, and what is kept of the answers."""

    kind: Literal["sonnets", "paraphrase", "restate", "qa", "instructions"] = Field(
        description="kind of data", json_schema_extra={"positional": True}
    )
    count: int = Field(100, ge=1, description="requests in all; may grow from one session to the next")
    model: str | None = Field(
        None, description="teacher: its name at the endpoint; without one a folder, a run, a .gguf file or a Hub id",
        json_schema_extra=_TEACHER,
    )  # fmt: skip
    endpoint: str | None = Field(
        None, description="address of an OpenAI-compatible server, e.g. https://host/v1", json_schema_extra=_TEACHER
    )
    key_variable: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key", json_schema_extra=_TEACHER
    )
    timeout: float = Field(120.0, gt=0, description="seconds that one attempt may take", json_schema_extra=_TEACHER)
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="how the endpoint calls the most tokens of an answer", json_schema_extra=_TEACHER
    )
    answers: str | None = Field(
        None, description="filter these rows instead of asking: a path, toy:NAME or a Hub id", json_schema_extra=_DATA
    )
    against: tuple[str, ...] = Field(
        (), description="training, development and test rows that nothing may be shared with", json_schema_extra=_DATA
    )
    texts: str | None = Field(
        None, description="rows whose texts stand for {text} in the prompt", json_schema_extra=_DATA
    )
    text_field: str = Field("text", description="field of those rows", json_schema_extra=_DATA)
    prompt: str = Field(
        "", description="another prompt; {field} stands for a drawn value", json_schema_extra={"verbatim": True}
    )
    system: str = Field("", description="another role for the teacher", json_schema_extra={"verbatim": True})
    variety: dict[str, str] = Field(
        default_factory=dict, description="field = values to draw from, separated by |", json_schema_extra=_DATA
    )
    sampling: Sampling = Field(default_factory=Sampling, description="how answers are drawn")
    asking: Asking = Field(default_factory=Asking, description="how requests are sent")
    prices: Prices = Field(default_factory=Prices, description="price of the teacher's tokens")
    sifting: Sifting = Field(default_factory=Sifting, description="what is dropped")
    licence: str = Field("", description="licence of the answers, for the datasheet", json_schema_extra=_DATA)
    dry_run: bool = Field(
        False, description="show a prompt and the price, and stop", json_schema_extra={"section": "common"}
    )

    @field_validator("variety", mode="before")
    @classmethod
    def _lists_too(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {k: "|".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _agrees(self) -> SynthesisOptions:
        if (self.model is None) == (self.answers is None):
            raise ValueError("name a teacher with 'model', or rows to filter with 'answers', and not both")
        if self.answers is not None and (self.endpoint or self.dry_run):
            raise ValueError("'answers' are there already: leave endpoint and dry_run out")
        if self.asking.budget and not (self.prices.input_price or self.prices.output_price):
            raise ValueError("a budget needs prices: set input_price and output_price")
        if self.out is None and not self.dry_run:
            raise ValueError("synthesize keeps every answer: say where with 'out'")
        return self


def synthesis(options: SynthesisOptions, display: Display) -> Report:
    """Ask, filter, write, report.

    Raises:
        LimbeckError: no key, no server, a prompt with an unknown field, another plan's folder; or Ctrl-C.
    """
    kind = KINDS[options.kind]
    against = {source: _read(options, kind, source) for source in options.against}
    if options.answers is not None:
        rows = _read(options, kind, options.answers)
        return _finish(options, kind, rows, against, None, display)
    plan = _plan(options, kind)
    if options.dry_run:
        return _price(options, plan)
    assert options.out is not None
    folder, teacher = Path(options.out), _teacher(options)
    told = json.dumps({"teacher": teacher.name, "origin": teacher.origin, **plan.describe()})
    with Ledger(folder / _STORE, told, honours_keys=options.asking.honours_keys) as ledger:
        with StopRequest() as stop, _bar(display, plan.count) as advance:
            found = collect(
                plan, teacher, ledger, options.asking, options.prices, stop=lambda: stop.asked, on_answer=advance
            )
        rows = Rows.of((plan.row(a.ordinal, a.id, a.text) for a in ledger.answers()), f"answers of {teacher.name}")
    write_json(folder / "synthesis.json", {"plan": plan.describe(), "versions": versions(), "config": options})
    return _finish(options, kind, rows, against, found, display)


def _read(options: SynthesisOptions, kind: Kind, source: str) -> Rows:
    if kind.name == "sonnets":  # a file of numbered poems is many rows
        from limbeck.tasks.sonnets import Sonnets

        return Sonnets().read(source, columns={}, limit=None, separator="<|endoftext|>")
    return read(source, missing="drop")


def _plan(options: SynthesisOptions, kind: Kind) -> Plan:
    texts = None if options.texts is None else read(options.texts, required=[options.text_field])
    variety = {name: [v.strip() for v in values.split("|")] for name, values in options.variety.items()}
    return Plan(
        kind,
        options.count,
        options.seed,
        options.sampling,
        options.prompt,
        options.system,
        variety,
        texts,
        options.text_field,
    )


def _teacher(options: SynthesisOptions) -> TextTeacher:
    assert options.model is not None
    if options.endpoint is not None:
        key = key_from_environment(options.key_variable, options.endpoint)
        return Endpoint(
            options.endpoint, options.model, key=key, timeout=options.timeout, limit_field=options.limit_field
        )
    from limbeck.formats.load import load_bundle
    from limbeck.jobs.source import device_of, dtype_of
    from limbeck.synth.local import LocalTeacher

    return LocalTeacher(load_bundle(options.model, dtype_of(options.dtype), device_of(options.device)), options.model)


def _price(options: SynthesisOptions, plan: Plan) -> Report:
    told, currency = estimate(plan, options.prices), options.prices.currency
    first = plan.request(0)
    values = {"verb": options.verb, "dry_run": True, "estimate": asdict(told), "currency": currency,
              "messages": [m.plain() for m in first.messages]}  # fmt: skip
    priced = [
        ("requests", f"{told.requests:,}"),
        ("tokens", f"at most {told.prompt_tokens:,} of prompts and {told.answer_tokens:,} of answers"),
        ("price", f"at most {told.most:.4f} {currency}; likely {told.likely:.4f} {currency}"),
    ]
    if options.asking.budget:
        priced.append(("budget", f"{options.asking.budget:g} {currency}"))
    shown = (Text(f"{m.role}: {m.content}") for m in first.messages)
    return Report(values, (facts("what it may cost", priced), *shown))


def _finish(
    options: SynthesisOptions,
    kind: Kind,
    rows: Rows,
    against: Mapping[str, Rows],
    found: Collected | None,
    session: Display,
) -> Report:
    session.say(f"filtering {len(rows):,} answers")
    sifted = sift(rows, filters_of(kind, options.sifting, against))
    paid = found is not None and bool(options.prices.input_price or options.prices.output_price)
    sheet = Datasheet(
        name=kind.name,
        teacher=options.model or "",
        task=kind.name,
        licence=options.licence,
        origin=options.endpoint or options.answers or "a local model",
        found=sifted,
        against={name: some.hash for name, some in against.items()},
        cost=found.totals.spent if found is not None and paid else None,
        currency=options.prices.currency,
        figures=figures(kind, rows),
    )
    assert options.out is not None
    write_set(Path(options.out), kind, sheet)
    values: dict[str, Any] = {"verb": options.verb, "out": options.out, **sheet.describe()}
    body: list[RenderableType] = []
    if found is not None:
        totals = asdict(found.totals) | {"spent": found.totals.spent}
        values["asking"] = {"stopped": found.stopped, "lost": found.lost, "sent": found.sent, **totals}
        body += _asked(options, found)
    body += [show_yield(sifted), *(Text(f"{name}: {value}") for name, value in sheet.figures.items())]
    values["config"] = options.model_dump(mode="json")
    return Report(values, tuple(body))


def _asked(options: SynthesisOptions, found: Collected) -> list[RenderableType]:
    totals, currency = found.totals, options.prices.currency
    told: list[tuple[str, object]] = [
        ("answered", f"{totals.done:,} of {options.count:,} ({found.sent:,} attempts in this session)"),
        ("tokens", f"{totals.prompt_tokens:,} of prompts, {totals.answer_tokens:,} of answers"),
        ("cost", f"{totals.cost:.4f} {currency}, and at most {totals.at_risk:.4f} without an answer"),
    ]
    if totals.unsure or totals.refused:
        told.append(("without answer", f"{totals.unsure} perhaps billed, {totals.refused} refused by the teacher"))
    out: list[RenderableType] = [facts("asked", told)]
    if found.stopped == "budget":
        out.append(Text("the budget allows no further request: raise it to go on", style="yellow"))
    if found.stopped == "failures":
        out.append(Text("some requests used up their attempts: run the same command to go on", style="yellow"))
    return out


@contextmanager
def _bar(session: Display, count: int) -> Iterator[Any]:
    """Show a progress bar over ``count`` requests; yield what takes the number of answers."""
    with Progress(console=session.console, disable=not session.progress or session.quiet, transient=True) as bar:
        work = bar.add_task("answers", total=count)
        yield lambda done: bar.update(work, completed=done)


def show_yield(found: Yield) -> Table:
    """Return the yield by filter as a table."""
    table = Table(title=f"kept {found.total.describe()}", title_justify="left")
    for column in ("filter", "entered", "dropped", "kept", "interval", "drops alone"):
        table.add_column(column, justify="left" if column == "filter" else "right")
    for step in found.steps:
        share = step.kept
        span = f"[{share.low:.1%}, {share.high:.1%}]"
        dropped = share.of - share.count
        table.add_row(step.name, f"{share.of:,}", f"{dropped:,}", f"{share.value:.1%}", span, f"{step.alone:,}")
    return table
