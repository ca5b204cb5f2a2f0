"""Pretraining: its options, and how a fresh decoder starts, on rows in memory or on corpora on disk."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.audit.report import AuditReport
from limbeck.data.dialect import Dialect
from limbeck.data.mixture import Mixture
from limbeck.data.shards import Corpus
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError
from limbeck.formats.hub import resolve_tokenizer
from limbeck.jobs.corpora import (
    CorpusSource,
    bytes_per_token,
    encode_corpus,
    held_out_rows,
    sample_rows,
    shared_tokenizer,
)
from limbeck.jobs.corpora_audit import audit_corpora
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.prepared import DataSteps, Say, encode_parts, rows_in_memory
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Encoded, Source, Start
from limbeck.jobs.training import TrainingJob
from limbeck.measure.limit import matmul_rate
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.tasks.table import TASKS
from limbeck.train.distributed import world
from limbeck.train.settings import TrainSettings

__all__ = ["PretrainingOptions", "pretraining"]

_MODEL: dict[str, JsonValue] = {"section": "model"}
_DATA: dict[str, JsonValue] = {"section": "data"}


class PretrainingOptions(TrainingOptions):
    """A decoder to build, its tokenizer, and data in memory or in corpora on disk."""

    data: str = Field("", description="training rows in memory: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)
    corpora: dict[str, CorpusSource] = Field(
        default_factory=dict,
        description="name -> corpus on disk, mixed by weight; excludes data",
        json_schema_extra=_DATA,
    )
    shards: str = Field("runs/shards", description="folder for tokenised corpora", json_schema_extra=_DATA)
    processes: int = Field(1, ge=1, description="that tokenise corpora at once", json_schema_extra=_DATA)
    architecture: Architecture = Field(default_factory=Architecture, description="the decoder to build")
    tokenizer: str | None = Field(
        None,
        description="folder, model, run or Hub id of a tokenizer; none: train one on the training rows",
        json_schema_extra=_MODEL,
    )
    vocab_size: int = Field(4096, ge=257, description="entries of a tokenizer trained here", json_schema_extra=_MODEL)
    packing: bool = Field(True, description="fill rows with several whole documents", json_schema_extra=_DATA)
    tokens: int | None = Field(
        None, ge=1, description="training tokens, in place of steps and epochs; corpora only", json_schema_extra=_DATA
    )
    planned_rate: float | None = Field(
        None,
        gt=0,
        description="FLOP/s that another device would reach: --dry-run prints the time that it would take",
        json_schema_extra=_MODEL,
    )

    @model_validator(mode="after")
    def _one_tokenizer(self) -> PretrainingOptions:
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set and self.vocab_size != 4096:
            raise ValueError("vocab_size is for a tokenizer trained here: leave it out beside 'tokenizer'")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> PretrainingOptions:
        if bool(self.data) == bool(self.corpora):
            raise ValueError("give either 'data', one source in memory, or 'corpora', several on disk")
        if self.planned_rate is not None and not self.dry_run:
            raise ValueError("planned_rate is for --dry-run alone")
        if not self.corpora:
            if self.tokens is not None:
                raise ValueError("tokens needs corpora: give steps or epochs beside 'data'")
            return self
        if not self.task.from_corpora:
            names = ", ".join(f"'{name}'" for name, kind in TASKS.items() if kind.from_corpora)
            raise ValueError(f"corpora are for task {names}: give 'data' for any other")
        if self.dialect != Dialect():
            raise ValueError("corpora have dialects of their own: move 'delimiter' and 'quotes' into each corpus")
        if self.audit == "drop":
            raise ValueError("audit 'drop' needs 'data': of corpora no document is left out")
        if self.valid is not None or self.test is not None:
            raise ValueError("corpora name their held-out text themselves: move 'valid' into each corpus")
        if self.tokens is not None and (self.train.steps is not None or self.train.epochs is not None):
            raise ValueError("tokens excludes steps and epochs: give one")
        return self

    def settings(self, monitored: bool) -> TrainSettings:
        """Return those of the loop; a budget of tokens becomes steps, whatever the number of ranks.

        Raises:
            ConfigError: as every training verb's, or a budget without a context.
        """
        settings = super().settings(monitored)
        if self.tokens is None:
            return settings
        if self.context is None:
            raise ConfigError("a budget of 'tokens' needs 'context', the tokens of a row")
        a_step = self.batch_size * settings.accumulation * world().size * self.context
        return settings.model_copy(update={"steps": math.ceil(self.tokens / a_step)})


def pretraining(options: PretrainingOptions) -> TrainingJob:
    """Return the job that trains a fresh decoder."""
    return TrainingJob(
        options,
        partial(_start, options),
        _corpora(options) if options.corpora else rows_in_memory(options),
        limit=partial(_limit, options),
        planned_rate=options.planned_rate,
    )


def _start(options: PretrainingOptions, parts: Parts, device: torch.device) -> Start:
    """Load or train the tokenizer, build the decoder, draw its weights."""
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(resolve_tokenizer(options.tokenizer))
        source = f"tokenizer of {options.tokenizer}"
    elif options.corpora:
        folder = Path(options.shards)
        tokenizer = shared_tokenizer(options.corpora, folder, options.vocab_size, options.separator, options.limit)
        source = "tokenizer trained on the corpora"
    else:
        texts = (row.text(name) for row in parts.train for name in options.task.required)
        tokenizer, source = Tokenizer.train(texts, options.vocab_size), "tokenizer trained on the training rows"
    config = options.architecture.config(tokenizer.vocab_size)
    torch.manual_seed(options.seed)  # weights depend on the seed alone, not on what was drawn before
    model = Decoder(config).to(device)
    return Start(model, tokenizer, {}, f"random weights; {source}", fresh=True)


def _limit(options: PretrainingOptions, model: Decoder, device: torch.device) -> float:
    """Return a training token's arithmetic by the measured rate of matrix products, the faster dtype's where free."""
    kinds = {"fp32": [torch.float32], "bf16": [torch.bfloat16], "fp64": [torch.float64]}
    dtypes = kinds.get(options.dtype if options.dtype != "auto" else options.train.precision)
    rates = [matmul_rate(d, device) for d in dtypes or [torch.float32, torch.bfloat16]]
    return 3 * model.flops_per_token(options.context or model.config.context) / max(rates)


def _corpora(options: PretrainingOptions) -> DataSteps:
    """Return the steps of corpora on disk: of the training text the first documents alone are in memory, for the
    probes.
    """
    separator, limit = options.separator, options.limit

    def read() -> Parts:
        return Parts(sample_rows(options.corpora, separator, limit), held_out_rows(options.corpora, separator), None)

    def audit(parts: Parts, say: Say) -> tuple[Parts, AuditReport | None]:
        """Look at every document, by the first rank alone."""
        if options.audit == "off":
            return parts, None

        def look() -> AuditReport:
            folder = Path(options.shards)
            return audit_corpora(options.corpora, parts.valid, folder, separator=separator, limit=limit, say=say)

        found = world().on_main(look)
        return parts, found.decide(options.audit, parts.train)[1]

    return DataSteps(read, audit, partial(_encode, options), partial(_stream, options))


def _encode(options: PretrainingOptions, parts: Parts, start: Start) -> Encoded:
    """As of rows in memory, with the bytes a token of each corpus whose held-out loss is told by itself."""
    data = encode_parts(options, parts, start)
    if parts.valid is None:
        return data
    begin, _ = options.task.document_marks(start.tokenizer)
    names = [n for n, c in options.corpora.items() if c.valid is not None]
    sizes = {name: bytes_per_token(parts.valid, data.valid, name, begin) for name in names}
    return Encoded(data.train, data.valid, data.report, data.context, sizes)


def _stream(options: PretrainingOptions, data: Encoded, start: Start) -> Source:
    """Tokenise the corpora to shards, and mix them by their weights."""
    begin, end = options.task.document_marks(start.tokenizer)

    def encode() -> list[Corpus]:
        return [
            encode_corpus(
                name, corpus, Path(options.shards), start.tokenizer, begin=begin, end=end, processes=options.processes,
                separator=options.separator, limit=options.limit,
            )
            for name, corpus in options.corpora.items()
        ]  # fmt: skip

    made = world().in_turn(encode)
    return Mixture(
        made,
        [c.weight for c in options.corpora.values()],
        batch_size=options.batch_size,
        context=data.context,
        pad_id=start.tokenizer.pad_id,
        seed=options.seed,
    )
