"""What a training works on: the steps that make its data, and everything that stands ready before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from limbeck.data.audit.report import AuditReport
from limbeck.data.batch import Example, collate
from limbeck.data.batches import CollateFn, fixed_batches
from limbeck.jobs.checks import Checks, audited
from limbeck.jobs.options import TrainingOptions
from limbeck.jobs.recipe import Display
from limbeck.jobs.source import Parts
from limbeck.jobs.start import Encoded, Source, Start
from limbeck.model.decoder import Decoder
from limbeck.run import Run
from limbeck.train.settings import TrainSettings

__all__ = ["DataSteps", "PreparedTraining", "encode_parts", "rows_in_memory"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DataSteps:
    """How a training reads, audits, tokenises and batches its data, in this order.

    Attributes:
        read: the rows of every part.
        audit: the rows that are left after the audit, and what it found; None where it is off.
        encode: tokenise the parts for the model to train.
        stream: micro-batches to learn from.
        collate_fn: makes a batch of examples.
    """

    read: Callable[[], Parts]
    audit: Callable[[Parts, Say], tuple[Parts, AuditReport | None]]
    encode: Callable[[Parts, Start], Encoded]
    stream: Callable[[Encoded, Start], Source]
    collate_fn: CollateFn = collate


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """A training before its first step.

    Attributes:
        options: of the training.
        model: with its techniques; converted once the training is done.
        start: what it began from.
        parts: rows of the data after the audit.
        data: the examples.
        stream: micro-batches of them.
        checks: probes and what they need.
        settings: of the loop.
        device: where it runs.
        display: for people.
        run: the open run folder; None where nothing may be written, as in a dry run.
    """

    options: TrainingOptions
    model: Decoder
    start: Start
    parts: Parts
    data: Encoded
    stream: Source
    checks: Checks
    settings: TrainSettings
    device: torch.device
    display: Display
    run: Run | None = None

    @property
    def opened(self) -> Run:
        """The run folder of a training that writes.

        Raises:
            RuntimeError: it is not open yet.
        """
        if self.run is None:
            raise RuntimeError("the run folder is not open before the training starts")
        return self.run

    def fixed(self, examples: Sequence[Example], collate_fn: CollateFn = collate) -> list[Any]:
        """Return ``examples`` in fixed batches, as they are measured."""
        size, pad_id = self.options.measuring.batch_size, self.start.tokenizer.pad_id
        return fixed_batches(examples, size, self.data.context, pad_id, collate_fn)


def rows_in_memory(options: TrainingOptions, collate_fn: CollateFn = collate) -> DataSteps:
    """Return the steps of data that is read whole, as the task reads and encodes it."""

    def audit(parts: Parts, say: Say) -> tuple[Parts, AuditReport | None]:
        return audited(parts, options.audit, options.task)

    def stream(data: Encoded, start: Start) -> Source:
        return options.shuffled(data.train, start.tokenizer.pad_id, data.context, collate_fn)

    return DataSteps(partial(options.parts, options.task), audit, partial(encode_parts, options), stream, collate_fn)


def encode_parts(options: TrainingOptions, parts: Parts, start: Start) -> Encoded:
    """Tokenise training and validation rows for the context that both the options and the models allow."""
    context = min(options.context or start.context, start.context)
    examples, report = options.task.encode(parts.train, start.tokenizer, context)
    valid: list[Example] = []
    if parts.valid is not None:
        valid, _ = options.task.encode(parts.valid, start.tokenizer, context)
    return Encoded(examples, valid, report, context)
