"""What a task is: the reader, template, objective, metric, decoding and predictions of one kind of work."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from limbeck.config import Config
from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport
from limbeck.data.readers import Dialect, Rows, read
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.storage import write_json
from limbeck.tasks.predictions import read_texts, same_items

__all__ = ["Measuring", "Result", "Task"]


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluation found; the figures are the task's ``statistics`` of the scores.

    Attributes:
        scores: one row an item, keyed by item id.
        protocol: everything that must be equal for two figures to be compared.
        samples: a few (prompt, generated, reference) triples to look at.
        notes: counted things that are not figures, such as truncated rows; ``told`` are sentences that must be shown.
        predictions: item id -> what was generated or chosen, in the items' order.
    """

    scores: Scores
    protocol: Mapping[str, Any]
    samples: Sequence[tuple[str, str, str]] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, str] = field(default_factory=dict)


class Measuring(Config):
    """How an evaluation is carried out, whatever the task."""

    retired: ClassVar[Mapping[str, str]] = {"resamples": "intervals are computed without resampling"}
    batch_size: int = Field(16, ge=1, description="sequences at once; no score depends on it")
    context: int | None = Field(None, ge=2, description="tokens a window; none: the model's own")
    generate: bool = Field(True, description="also generate and score what was generated, where the task does")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")


class Task(Config):
    """Base of every task: a config that carries its own handler, so that no recipe asks which task it runs.

    Attributes:
        name: how it is called on the command line; each subclass also has it as the literal field ``kind``.
        required: the fields that every row must have.
        split_by: the field whose equal values must land in one part of a split.
        from_corpora: it learns plain documents, so that it can learn from corpora on disk.
    """

    name: ClassVar[str]
    required: ClassVar[tuple[str, ...]]
    split_by: ClassVar[str | None] = None
    from_corpora: ClassVar[bool] = False

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read a data set; a task with a published format of its own reads that too.

        Args:
            source: a path, ``toy:NAME`` or a Hub id.
            columns: our field <- their column.
            limit: only the first rows.
            separator: line between the documents of a text file.
            dialect: delimiter and quotes of a table of text; None: found and checked.

        Raises:
            DataError: the source is missing, empty, or lacks a required field.
        """
        return read(
            source,
            required=self.required,
            columns=columns or None,
            limit=limit,
            separator=separator,
            dialect=dialect,
        )

    def check(self, model: Decoder) -> None:
        """Refuse a model whose head tells something else than the task asks for.

        Raises:
            ConfigError: it has a head of classes.
        """
        if model.config.classes is not None:
            told = ", ".join(model.config.classes.labels)
            raise ConfigError(
                f"the model has a classification head ({told}), and task '{self.name}' needs one of next tokens"
            )

    def prepare(self, model: Decoder) -> Decoder:
        """Return the model to train: ``model``, with the task's own head where it has one.

        Raises:
            ConfigError: the model's head tells something else.
        """
        self.check(model)
        return model

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Return the tokenizer to save with a model trained on it: ``tokenizer``, with a chat template where it has
        one.
        """
        return tokenizer

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Tokenise rows for training, with the targets marked.

        Raises:
            NothingToLearnError: a row (or every row) has no target left.
        """

    def document_marks(self, tokenizer: Tokenizer) -> tuple[bool, bool]:
        """Return whether documents of a corpus get the begin token, and whether they get the end token.

        A task with ``from_corpora`` implements it.
        """
        raise TypeError(f"task '{self.name}' learns from no corpora on disk")

    @abstractmethod
    def objective(self) -> AnyObjective:
        """Return what to learn without a teacher."""

    @abstractmethod
    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return the figures of an evaluation that has these score columns; the first is the main one."""

    @abstractmethod
    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure ``model`` on ``rows``."""

    def decoding(self) -> Decoding:
        """Return how it generates unless told otherwise."""
        return Decoding()

    def predicts(self, measuring: Measuring) -> bool:
        """Return whether an evaluation generates or chooses something for each item, which can be written to a file."""
        return True

    def write_predictions(self, result: Result, path: Path) -> None:
        """Write what was generated or chosen for each item, in the task's published format, else as a JSON object.

        Raises:
            StorageError: the disk refused.
        """
        write_json(path, dict(result.predictions))

    def read_predictions(self, path: Path, rows: Rows) -> dict[str, str]:
        """Read what ``write_predictions`` wrote for ``rows``, in their order.

        Raises:
            DataError: the file cannot be read, or is of another split.
        """
        return same_items(read_texts(path), [row.id for row in rows], path)

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Score predictions that were read from a file, for ``rows``, as ``evaluate`` scores a model's own.

        Raises:
            ConfigError: the task makes no predictions.
        """
        raise ConfigError(f"task '{self.name}' predicts nothing for each row, so that no file of it can be scored")
