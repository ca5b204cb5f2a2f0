"""Self-distillation of a paraphrase classifier: its options, its run folder and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, model_validator
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.errors import ConfigError, DataError
from limbeck.formats.hub import commits_of
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.recipe import Display, Recipe, Report, default_folder
from limbeck.jobs.source import DataSource, device_of
from limbeck.run import Run
from limbeck.storage import write_text
from limbeck.synth.figure import epoch_page
from limbeck.synth.selfdistill import SelfDistilling, self_distill
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.task import Measuring
from limbeck.train.settings import TrainSettings

__all__ = ["SelfDistillationOptions", "self_distillation"]

_MODEL: dict[str, JsonValue] = {"section": "model"}


class SelfDistillationOptions(DataSource, Recipe):
    """A model, its data, and the arms that are compared."""

    model: str = Field(description=f"model to start from: {NAMES}", json_schema_extra=_MODEL)
    task: Paraphrase = Field(default_factory=Paraphrase, description="the classifier's task")
    batch_size: int = Field(16, ge=1, description="rows of an optimizer step", json_schema_extra={"section": "data"})
    distilling: SelfDistilling = Field(default_factory=SelfDistilling, description="rounds, arms and seeds")
    train: TrainSettings = Field(default_factory=TrainSettings, description="training of the classifiers")
    generator_rate: float = Field(3e-4, gt=0, description="peak learning rate of the generator's tuning")
    measuring: Measuring = Field(default_factory=Measuring, description="the evaluations")
    save_generator: bool = Field(False, description="write the generator of the first seed to the run's model folder")

    @model_validator(mode="after")
    def _agrees(self) -> SelfDistillationOptions:
        if self.train.patience:
            raise ValueError("arms are compared at equal steps: leave patience out")
        return self

    @property
    def folder(self) -> Path:
        """Run folder: ``out``, or one named after the recipe."""
        return default_folder(self) if self.out is None else Path(self.out)


def self_distillation(options: SelfDistillationOptions, display: Display) -> Report:
    """Make rounds, train every arm for every seed, compare, report.

    Raises:
        LimbeckError: the data or the model do not fit, a loss diverged; or Ctrl-C.
    """
    parts = options.parts(options.task)
    valid = parts.valid
    if valid is None:
        raise DataError("options-distillation is measured by epoch: give 'valid', or a share of it in 'fractions'")
    if options.dtype == "fp16":
        raise ConfigError("training in fp16 is not supported, as its gradients underflow: use bf16, fp32 or auto")
    final = parts.test if parts.test is not None else valid
    settings = (
        options.train if options.dtype == "auto" else options.train.model_copy(update={"precision": options.dtype})
    )
    bundle = load_bundle(options.model, device=device_of(options.device))
    with Run.create(options.folder, options) as run:
        if run.finished:
            display.say(run.describe())
            return Report(run.report(), _body(run.report()))
        run.provenance(
            seed=options.seed,
            data={k: v["hash"] for k, v in parts.describe().items()},
            models=commits_of(options.model_dump()),
        )
        generator = settings.model_copy(update={"learning_rate": options.generator_rate})
        found = self_distill(
            bundle, options.task, parts.train, valid, final, options.distilling, settings, generator,
            batch_size=options.batch_size, measuring=options.measuring, seed=options.seed, folder=run.path,
            say=display.say,
        )  # fmt: skip
        if options.save_generator and found.generator is not None:
            save_bundle(found.generator, bundle.tokenizer, run.model, generation=bundle.generation)
        values = {"verb": options.verb, "run": str(run.path), "data": parts.describe(), **found.values}
        write_text(run.path / "epochs.html", epoch_page(found.values["by_epoch"]))
        run.finish(values)
    return Report(values, _body(values))


def _body(values: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    body: list[RenderableType] = []
    for seed, made in enumerate(values["rounds"]):
        if made is None:
            continue
        title = f"rounds, seed {seed}: {made['pairs']} pairs, stopped by {made['stopped']}"
        table = Table(title=title, title_justify="left")
        for column in ("round", "candidates", "kept", "distinct-2", "self-BLEU", "words", "loss", "collapse"):
            table.add_column(column, justify="left" if column == "collapse" else "right")
        for one in made["rounds"]:
            written, loss = one["written"], one["loss"]
            table.add_row(
                str(one["round"]), str(one["entered"]), str(one["kept"]), f"{written['distinct_2']:.3f}",
                f"{written['self_bleu']:.1f}", f"{written['words']:.1f}", "-" if loss is None else f"{loss:.3f}",
                "; ".join(one["collapse"]) or "none",
            )  # fmt: skip
        body.append(table)
    arms = Table(title=f"arms on {values['evaluated']['rows']} rows", title_justify="left")
    for column in ("arm", "figure", "value", "interval", "seeds", "steps", "rows"):
        arms.add_column(column, justify="left" if column in ("arm", "figure") else "right")
    for name, row in values["table"].items():
        span = f"[{row['low']:.4f}, {row['high']:.4f}]"
        arms.add_row(
            name, row["figure"], f"{row['value']:.4f}", span, str(row["seeds"]), str(row["steps"]), str(row["rows"][0])
        )
    body.append(arms)
    for name, row in values["table"].items():
        body += [Text(f"{name}: {note}", style="yellow") for note in row["notes"]]
        if "against_plain" in row:
            needed = row["against_plain"]["items_needed"]
            more = "" if needed is None else f" (items needed to show such a difference: {needed:,})"
            body.append(Text(f"{name}: {row['against_plain']['verdict']}{more}"))
    body.append(Text(f"accuracy and loss by epoch: {values['run']}/epochs.html", style="dim"))
    return tuple(body)
