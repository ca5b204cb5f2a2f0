"""Paraphrase: do two sentences mean the same? Cloze style, the answer being the next word, or with a head."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, Template, encode_rows, prompt_ids
from limbeck.data.readers import Dialect, Row, Rows, read
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.measure.choice import fit_prompt, score_choices
from limbeck.measure.classes import class_statistics
from limbeck.measure.continuation import score_continuations
from limbeck.measure.statistic import Statistic
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from limbeck.model.heads import classes_of, with_classes
from limbeck.objectives.classify import Classify
from limbeck.objectives.next_token import NextToken
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

__all__ = ["Paraphrase"]

_TITLE = "Predicted_Is_Paraphrase"
_LABELS = ("0", "1")
_COURSE_IDS = {"0": "3919", "1": "8505"}
"""GPT-2's ids of "no" and "yes", which the course's files hold in the place of classes."""

_ANSWER = "answer_text"


class Paraphrase(Task):
    """Rows ``sentence1, sentence2, is_duplicate``, as in the Quora question pairs of the course."""

    name: ClassVar[str] = "paraphrase"
    required: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2", "is_duplicate")
    split_by: ClassVar[str | None] = "sentence1"

    kind: Literal["paraphrase"] = "paraphrase"
    method: Literal["cloze", "head"] = Field(
        "cloze", description="cloze: the answer is the next word; head: a classification head gives it"
    )
    vocabulary: Literal["restricted", "open"] = Field(
        "restricted", description="cloze: the likelier of both answers, or the likeliest token of all must be one"
    )
    prompt: str = Field(
        'Is "{sentence1}" a paraphrase of "{sentence2}"? Answer "yes" or "no":',
        description="what is given; {field} stands for a column",
    )
    answers: tuple[str, str] = Field(
        (" no", " yes"), description="what is answered to a pair of class 0, and of class 1"
    )
    pool: Literal["last", "mean"] = Field("last", description="what a head reads: the last token, or the mean of all")
    begin: bool | None = Field(None, description="put the begin token before each row; none: as the tokenizer does")
    course_labels: Literal["ids", "classes"] = Field(
        "ids", description="predictions file: GPT-2's ids of no and yes (3919, 8505) as the course writes, or 0 and 1"
    )

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read a table; rows that lack a sentence or the label are left out and counted in ``Rows.dropped``."""
        return read(
            source,
            required=self.required,
            columns=columns or None,
            limit=limit,
            separator=separator,
            dialect=dialect,
            missing="drop",
        )

    @property
    def template(self) -> Template:
        """Prompt and answer."""
        return Template(prompt=self.prompt, answer=f"{{{_ANSWER}}}")

    def check(self, model: Decoder) -> None:
        """Refuse a head of classes where the answer is the next word, and the other way round."""
        if self.method == "head":
            classes_of(model)
        elif model.config.classes is not None:
            raise ConfigError(
                "the model has a classification head, not one of next words: set the task's method to head"
            )

    def prepare(self, model: Decoder) -> Decoder:
        """Put a head of two classes on the model, where one is asked for."""
        if self.method == "head":
            return with_classes(model, Classes(labels=_LABELS, pool=self.pool))
        self.check(model)
        return model

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode the question and its answer, which alone is learned (cloze); with a head, question and class."""
        truth = labels_of(rows, "is_duplicate", _LABELS)
        if self.method == "head":
            return self._for_head(rows, truth, tokenizer, context)
        answered = Rows.of(
            (Row(r.id, {**r.fields, _ANSWER: self.answers[c]}) for r, c in zip(rows, truth, strict=True)), rows.source
        )
        return encode_rows(answered, tokenizer, context, template=self.template, end_token=False, bos=self.begin)

    def _for_head(
        self, rows: Rows, truth: list[int], tokenizer: Tokenizer, context: int
    ) -> tuple[list[Example], EncodingReport]:
        texts = [self.template.render_prompt(row, rows.source) for row in rows]
        return encode_texts(rows, texts, truth, tokenizer, context, begin=self.begin, keep="end")

    def objective(self) -> AnyObjective:
        """Return the likelihood of the answer's tokens, or of the class."""
        return Classify(self.pool) if self.method == "head" else NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return accuracy, macro F1, majority rate, F1 of paraphrases; nats per item."""
        return (*class_statistics(columns), *([NATS_PER_ITEM] if "nll" in columns else []))

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Answer every row."""
        self.check(model)
        truth = labels_of(rows, "is_duplicate", _LABELS)
        context = min(measuring.context or model.config.context, model.config.context)
        protocol: dict[str, Any] = {
            "context": context,
            "method": self.method,
            "prompt": self.prompt,
            "begin": self.begin,
        }
        if self.method == "head":
            examples, report = self._for_head(rows, truth, tokenizer, context)
            log_probs = head_log_probs(model, examples, measuring.batch_size)
            notes = {"truncated": len(report.truncated)}
            return class_result(rows, truth, log_probs, _LABELS, {**protocol, "pool": self.pool}, notes=notes)
        answers = self._answer_ids(tokenizer)
        prompts = [prompt_ids(row, self.template, tokenizer, bos=self.begin) for row in rows]
        room = context - max(map(len, answers)) + 1
        begins = int(bool(prompts) and prompts[0][0] == tokenizer.bos_id)
        fitted = [fit_prompt(p, room, begins) for p in prompts]
        found = score_choices(model, fitted, answers, batch_size=measuring.batch_size, pad_id=tokenizer.pad_id)
        together = np.logaddexp.reduce(found.log_probs, axis=1)
        more, log_probs, predicted = {"answered": np.exp(together)}, found.log_probs - together[:, None], None
        if self.vocabulary == "open":
            predicted = self._written(model, tokenizer, fitted, answers, found.top, measuring.batch_size)
            more["confidence"], log_probs = np.exp(found.top_log_probs), found.log_probs
        chosen = found.log_probs.argmax(axis=1) if predicted is None else predicted
        return class_result(
            rows,
            truth,
            log_probs,
            _LABELS,
            {**protocol, "answers": list(self.answers), "vocabulary": self.vocabulary},
            predicted=predicted,
            notes={"truncated": sum(len(p) > room for p in prompts)},
            more=more,
            samples=self._samples(rows, truth, chosen),
        )

    def _written(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        top: NDArray[np.int64],
        batch_size: int,
    ) -> list[int]:
        """Class of the answer that greedy decoding writes in full after each prompt, -1 for none of them."""
        if all(len(answer) == 1 for answer in answers):
            place = {answer[0]: c for c, answer in enumerate(answers)}
            return [place.get(int(token), -1) for token in top]
        pairs = [(prompt, answer) for prompt in prompts for answer in answers]
        greedy = score_continuations(model, pairs, batch_size=batch_size, pad_id=tokenizer.pad_id).greedy
        table = greedy.reshape(len(prompts), len(answers))
        return [int(row.argmax()) if row.any() else -1 for row in table]

    def _answer_ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        ids = [tokenizer.encode(answer, continues=True) for answer in self.answers]
        if self.vocabulary == "open" and ids[0][:1] == ids[1][:1]:
            raise ConfigError(f"both answers begin with one token: {self.answers} cannot be told apart by the next one")
        return ids

    def _samples(self, rows: Rows, truth: list[int], predicted: Any) -> list[tuple[str, str, str]]:
        said = [*self.answers, " (neither)"]  # -1 is the last
        return [
            (self.template.render_prompt(row), said[int(predicted[i])], self.answers[truth[i]].strip())
            for i, row in enumerate(rows.rows[:3])
        ]

    def write_predictions(self, result: Result, path: Path) -> None:
        """Write ``ID, LABEL`` lines in the course's format; an answer that is neither is written as ``-1``."""
        names = {**(_COURSE_IDS if self.course_labels == "ids" else {c: c for c in _LABELS}), "none": "-1"}
        write_labels(((name, names[c]) for name, c in result.predictions.items()), path, _TITLE)

    def read_predictions(self, path: Path, rows: Rows) -> dict[str, str]:
        """Read the course's format as classes: ``0``, ``1`` or ``none``.

        Raises:
            DataError: the file is of another split, or holds a label that is no class.
        """
        known = {v: k for k, v in _COURSE_IDS.items()} | {c: c for c in _LABELS} | {"-1": "none"}
        found = read_labels(path, _TITLE)
        odd = next((name for name, label in found.items() if label not in known), None)
        if odd is not None:
            raise DataError(
                f"predictions file {path} gives '{odd}' the label '{found[odd]}', none of {', '.join(known)}"
            )
        return same_items({name: known[label] for name, label in found.items()}, [row.id for row in rows], path)

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return accuracy, F1 and majority rate of classes from a file; an answer that is neither is wrong."""
        return scored_classes(predictions, rows, "is_duplicate", _LABELS, {})
