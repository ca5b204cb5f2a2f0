"""Sentiment: one class a sentence, told by a head on the last token or on the mean of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from limbeck.data.batch import Example
from limbeck.data.border import class_of
from limbeck.data.prompts import EncodingReport
from limbeck.data.readers import Dialect, Rows, read
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.measure.classes import class_statistics
from limbeck.measure.statistic import Statistic
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from limbeck.model.heads import classes_of, with_classes
from limbeck.objectives.classify import Classify
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.classification import (
    NATS_PER_ITEM,
    class_result,
    encode_texts,
    head_log_probs,
    labels_of,
    scored_classes,
)
from limbeck.tasks.predictions import read_labels, same_items, write_labels
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["Sentiment"]

_TITLE = "Predicted_Sentiment"
_THEIRS = "sentiment"  # the course's name of our field 'label'


class Sentiment(Task):
    """Rows ``sentence, label`` (or the course's ``sentence, sentiment``): SST-5, CFIMDB, SST-2 and their like.

    The whole model is trained unless a technique says otherwise: ``freeze`` with ``train=[head]`` is the course's last
    linear layer, with ``last_layer`` the last block beside it.
    """

    name: ClassVar[str] = "sentiment"
    required: ClassVar[tuple[str, ...]] = ("sentence", "label")
    split_by: ClassVar[str | None] = "sentence"

    kind: Literal["sentiment"] = "sentiment"
    labels: tuple[str, ...] = Field(
        ("0", "1", "2", "3", "4"), min_length=2, description="the classes; 0,1,2,3,4 of SST-5, 0,1 of CFIMDB and SST-2"
    )
    pool: Literal["last", "mean"] = Field("last", description="what the head reads: the last token, or the mean of all")
    keep: Literal["start", "end"] = Field("start", description="what stays of a text longer than the context")
    begin: bool | None = Field(None, description="put the begin token before each text; none: as the tokenizer does")

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(label.strip() for label in labels)
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"each class needs a name of its own, not {', '.join(map(repr, labels))}")
        return names

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read a table; rows without a label are left out and counted in ``Rows.dropped``."""
        names = dict(columns)
        if "label" not in names:
            there = read(source, limit=1, separator=separator, dialect=dialect).columns
            if "label" not in there and _THEIRS in there:
                names["label"] = _THEIRS
        return read(
            source,
            required=self.required,
            columns=names or None,
            limit=limit,
            separator=separator,
            dialect=dialect,
            missing="drop",
        )

    def check(self, model: Decoder) -> None:
        """Refuse a model without a head of classes."""
        classes_of(model)

    def prepare(self, model: Decoder) -> Decoder:
        """Put a head of the labels on the model, unless it has one."""
        return with_classes(model, Classes(labels=self.labels, pool=self.pool))

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode sentences with an end token, and their class."""
        return self._encode(rows, labels_of(rows, "label", self.labels), tokenizer, context)

    def _encode(
        self, rows: Rows, truth: list[int], tokenizer: Tokenizer, context: int
    ) -> tuple[list[Example], EncodingReport]:
        texts = [row.text("sentence", rows.source).strip() for row in rows]
        return encode_texts(rows, texts, truth, tokenizer, context, begin=self.begin, keep=self.keep)

    def objective(self) -> AnyObjective:
        """Return the likelihood of the class."""
        return Classify(self.pool)

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return accuracy, macro F1, majority rate; nats per item."""
        return (*class_statistics(columns), *([NATS_PER_ITEM] if "nll" in columns else []))

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Classify every row; the classes are those of the model's head, whatever ``labels`` says."""
        classes = classes_of(model)
        truth = labels_of(rows, "label", classes.labels)
        context = min(measuring.context or model.config.context, model.config.context)
        examples, report = self._encode(rows, truth, tokenizer, context)
        log_probs = head_log_probs(model, examples, measuring.batch_size)
        protocol = {"context": context, "method": "head", "pool": classes.pool, "keep": self.keep, "begin": self.begin}
        best = log_probs.argmax(axis=1)
        samples = [
            (row.text("sentence").strip(), f" -> {classes.labels[best[i]]}", classes.labels[truth[i]])
            for i, row in enumerate(rows.rows[:3])
        ]
        return class_result(rows, truth, log_probs, classes.labels, protocol, notes=report.describe(), samples=samples)

    def write_predictions(self, result: Result, path: Path) -> None:
        """Write ``ID, CLASS`` lines in the course's format."""
        write_labels(result.predictions.items(), path, _TITLE)

    def read_predictions(self, path: Path, rows: Rows) -> dict[str, str]:
        """Read the course's format; a file of another split is an error."""
        return same_items(read_labels(path, _TITLE), [row.id for row in rows], path)

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return accuracy, macro F1 and majority rate of classes from a file.

        Raises:
            DataError: a class, predicted or true, that is none of ``labels``.
        """
        odd = next(((i, c) for i, c in predictions.items() if class_of(c, self.labels) is None), None)
        if odd is not None:
            raise DataError(f"the predictions give '{odd[0]}' the class '{odd[1]}', none of {', '.join(self.labels)}")
        return scored_classes(predictions, rows, "label", self.labels, {})
