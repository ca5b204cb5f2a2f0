"""SST-2 by label words: zero to eight examples shown, the likelier word chosen, calibrated or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, Template, encode_rows, prompt_ids
from limbeck.data.readers import Dialect, Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.measure.choice import calibrate, choose, fit_prompt, score_choices
from limbeck.measure.classes import class_statistics
from limbeck.measure.statistic import COUNT, Statistic, ratio
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.classification import NATS_PER_ITEM, class_result, labels_of, scored_classes
from limbeck.tasks.shots import draw_shots
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["SST2"]

_LABELS = ("0", "1")
_CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing (Zhao et al. 2021, section 5)."""

_WORD = "label_word"


class SST2(Task):
    """Rows ``sentence, label`` (0 negative, 1 positive), classified by the likelier word after the sentence; a probe.

    Every evaluation measures both: the plain choice and the calibrated one (contextual calibration). Fine-tuning on it
    teaches the label words after the prompt without examples.
    """

    name: ClassVar[str] = "sst2"
    required: ClassVar[tuple[str, ...]] = ("sentence", "label")
    split_by: ClassVar[str | None] = "sentence"

    kind: Literal["sst2"] = "sst2"
    shots: int = Field(0, ge=0, le=8, description="examples shown before each sentence")
    examples: str | None = Field(None, description="rows that examples are drawn from, such as the training file")
    shot_seed: int = Field(0, ge=0, description="seed of the drawing")
    balanced: bool = Field(True, description="as many examples of each class as can be")
    prompt: str = Field("Review: {sentence}\nSentiment:", description="what is given; {field} stands for a column")
    answers: tuple[str, str] = Field((" negative", " positive"), description="words of class 0 and of class 1")
    between: str = Field("\n\n", description="what stands between examples")
    calibrated: bool = Field(False, description="make the calibrated accuracy the main figure and the predictions")
    begin: bool | None = Field(None, description="put the begin token before each row; none: as the tokenizer does")

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read a table; white space around a sentence goes."""
        rows = super().read(source, columns=columns, limit=limit, separator=separator, dialect=dialect)
        plain = (Row(r.id, {**r.fields, "sentence": r.text("sentence", source).strip()}) for r in rows)
        return Rows.of(plain, source, rows.dropped, rows.notes)

    @property
    def template(self) -> Template:
        """Prompt and answer of one row."""
        return Template(prompt=self.prompt, answer=f"{{{_WORD}}}")

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode the prompt without examples; the label word alone is learned."""
        truth = labels_of(rows, "label", _LABELS)
        worded = Rows.of(
            (Row(r.id, {**r.fields, _WORD: self.answers[c]}) for r, c in zip(rows, truth, strict=True)), rows.source
        )
        return encode_rows(worded, tokenizer, context, template=self.template, end_token=False, bos=self.begin)

    def objective(self) -> AnyObjective:
        """Return the likelihood of the label word."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return the accuracy (calibrated first, where asked for), macro F1, majority rate, F1; nats per item."""
        plain, *rest = class_statistics(columns)
        other = ratio(
            "other_correct",
            COUNT,
            name="accuracy, not calibrated" if self.calibrated else "calibrated accuracy",
            bounds=(0, 1),
        )
        known = (plain, other, *rest, NATS_PER_ITEM)
        return tuple(s for s in known if set(s.columns) - {COUNT} <= set(columns))

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Choose the likelier word after every sentence, and after inputs that say nothing."""
        self.check(model)
        truth = labels_of(rows, "label", _LABELS)
        shown = self._shown(rows)
        answers = [tokenizer.encode(word, continues=True) for word in self.answers]
        context = min(measuring.context or model.config.context, model.config.context)
        room = context - max(map(len, answers)) + 1
        free = [Row(f"free:{i}", {"sentence": text}) for i, text in enumerate(_CONTENT_FREE)]
        template = Template(prompt=_escaped(shown) + self.prompt, answer=f"{{{_WORD}}}")
        prompts = [prompt_ids(row, template, tokenizer, bos=self.begin) for row in (*rows, *free)]
        begins = int(prompts[0][0] == tokenizer.bos_id)
        found = score_choices(
            model,
            [fit_prompt(p, room, begins) for p in prompts],
            answers,
            batch_size=measuring.batch_size,
            pad_id=tokenizer.pad_id,
        )
        plain, empty = found.log_probs[: len(rows)], found.log_probs[len(rows) :]
        calibrated = calibrate(plain, empty)
        main, other = (calibrated, plain) if self.calibrated else (plain, calibrated)
        prior = np.exp(empty - np.logaddexp.reduce(empty, axis=1, keepdims=True)).mean(axis=0)
        return class_result(
            rows,
            truth,
            main - np.logaddexp.reduce(main, axis=1, keepdims=True),
            _LABELS,
            self._protocol(context),
            more={"other_correct": (choose(other) == np.array(truth)).astype(np.float64)},
            notes={
                "truncated": sum(len(p) > room for p in prompts[: len(rows)]),
                "content_free": dict(zip(self.answers, prior.tolist(), strict=True)),
            },
            samples=[
                (template.render_prompt(row), self.answers[int(choose(main)[i])], self.answers[truth[i]].strip())
                for i, row in enumerate(rows.rows[:2])
            ],
        )

    def _shown(self, rows: Rows) -> str:
        """Return the examples as they stand before a sentence."""
        source = None
        if self.shots and self.examples is not None:
            source = self.read(self.examples, columns={}, limit=None, separator="")
        groups = labels_of(source, "label", _LABELS) if source is not None else None
        drawn = draw_shots(
            source, rows, self.shots, self.shot_seed, by="sentence", groups=groups if self.balanced else None
        )
        words = [self.answers[c] for c in labels_of(Rows.of(drawn, "examples"), "label", _LABELS)]
        parts = [self.template.render_prompt(row) + word for row, word in zip(drawn, words, strict=True)]
        return "".join(part + self.between for part in parts)

    def _protocol(self, context: int) -> dict[str, object]:
        return {
            "context": context,
            "prompt": self.prompt,
            "answers": list(self.answers),
            "shots": self.shots,
            "shot_seed": self.shot_seed if self.shots else None,
            "balanced": self.balanced if self.shots else None,
            "examples": self.examples if self.shots else None,
            "calibrated": self.calibrated,
            "content_free": list(_CONTENT_FREE),
            "scored": "summed log-likelihood of the label words",
        }

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return accuracy, F1 and majority rate of classes (0, 1) from a file."""
        return scored_classes(predictions, rows, "label", _LABELS, {})


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
