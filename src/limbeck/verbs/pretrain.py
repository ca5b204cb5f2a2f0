"""``limbeck pretrain``: a fresh decoder on text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, JsonValue, model_validator

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import Example
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
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Source
from limbeck.jobs.training import Encoded, Start, TrainingJob
from limbeck.measure.limit import matmul_rate
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.objectives.objective import AnyObjective
from limbeck.run import Run
from limbeck.tasks.table import TASKS
from limbeck.tasks.task import Task
from limbeck.train.distributed import world
from limbeck.train.settings import TrainSettings

__all__ = ["Pretrain"]

_MODEL: dict[str, JsonValue] = {"section": "model"}
_DATA: dict[str, JsonValue] = {"section": "data"}


class Pretrain(TrainingJob):
    """Train a fresh decoder from random weights."""

    verb: ClassVar[str] = "pretrain"
    summary: ClassVar[str] = "train a fresh decoder on text"

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
        description="FLOP/s that another device would reach: --dry-run tells its time",
        json_schema_extra=_MODEL,
    )

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Pretrain:
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set and self.vocab_size != 4096:
            raise ValueError("vocab_size is for a tokenizer trained here: leave it out beside 'tokenizer'")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Pretrain:
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

    def parts(self, task: Task) -> Parts:
        """Rows of 'data'; of corpora the first documents, for the probes, and what they hold out."""
        if not self.corpora:
            return super().parts(task)
        rows = sample_rows(self.corpora, self.separator, self.limit)
        return Parts(rows, held_out_rows(self.corpora, self.separator), None)

    def audited(self, parts: Parts, say: Callable[[str], None]) -> tuple[Parts, AuditReport | None]:
        """As every training verb's; of corpora every document is looked at, by the first rank alone.

        Raises:
            DataError: overlaps are refused.
        """
        if not self.corpora or self.audit == "off":
            return super().audited(parts, say)

        def look() -> AuditReport:
            folder, separator, limit = Path(self.shards), self.separator, self.limit
            return audit_corpora(self.corpora, parts.valid, folder, separator=separator, limit=limit, say=say)

        found = world().on_main(look)
        return parts, found.decide(self.audit, parts.train)[1]

    def settings(self, monitored: bool) -> TrainSettings:
        """Those of the loop; a budget of tokens becomes steps, whatever the number of ranks.

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

    def start(self, parts: Parts, device: torch.device) -> Start:
        """Load or train the tokenizer, build the decoder, draw its weights."""
        if self.tokenizer is not None:
            tokenizer = Tokenizer.load(resolve_tokenizer(self.tokenizer))
            source = f"tokenizer of {self.tokenizer}"
        elif self.corpora:
            folder = Path(self.shards)
            tokenizer = shared_tokenizer(self.corpora, folder, self.vocab_size, self.separator, self.limit)
            source = "tokenizer trained on the corpora"
        else:
            texts = (row.text(name) for row in parts.train for name in self.task.required)
            tokenizer, source = Tokenizer.train(texts, self.vocab_size), "tokenizer trained on the training rows"
        config = self.architecture.config(tokenizer.vocab_size)
        torch.manual_seed(self.seed)  # weights depend on the seed alone, not on what was drawn before
        model = Decoder(config).to(device)
        return Start(model, tokenizer, {}, f"random weights; {source}", fresh=True)

    def objective(self, model: Decoder, start: Start, data: Encoded, parts: Parts, run: Run | None) -> AnyObjective:
        """The task's own."""
        return self.task.objective()

    @property
    def rate_of_plan(self) -> float | None:
        """The stated rate, where there is one."""
        return self.planned_rate

    def utilisation(self, model: Decoder, device: torch.device) -> float:
        """A training token's arithmetic by the measured rate of matrix products, the faster dtype's where free."""
        kinds = {"fp32": [torch.float32], "bf16": [torch.bfloat16], "fp64": [torch.float64]}
        dtypes = kinds.get(self.dtype if self.dtype != "auto" else self.train.precision)
        rates = [matmul_rate(d, device) for d in dtypes or [torch.float32, torch.bfloat16]]
        return 3 * model.flops_per_token(self.context or model.config.context) / max(rates)

    def _encode(self, parts: Parts, start: Start) -> Encoded:
        data = super()._encode(parts, start)
        if not self.corpora or parts.valid is None:
            return data
        begin, _ = self.task.document_marks(start.tokenizer)
        names = [n for n, c in self.corpora.items() if c.valid is not None]
        sizes = {name: bytes_per_token(parts.valid, data.valid, name, begin) for name in names}
        return Encoded(data.train, data.valid, data.report, data.context, sizes)

    def _stream(self, examples: Sequence[Example], start: Start, context: int) -> Source:
        if not self.corpora:
            return super()._stream(examples, start, context)
        folder = Path(self.shards)
        begin, end = self.task.document_marks(start.tokenizer)
        options: dict[str, Any] = {
            "begin": begin, "end": end, "processes": self.processes,
            "separator": self.separator, "limit": self.limit,
        }  # fmt: skip

        def encode() -> list[Corpus]:
            return [encode_corpus(n, c, folder, start.tokenizer, **options) for n, c in self.corpora.items()]

        made = world().in_turn(encode)
        weights = [c.weight for c in self.corpora.values()]
        return Mixture(
            made, weights, batch_size=self.batch_size, context=context, pad_id=start.tokenizer.pad_id, seed=self.seed
        )
