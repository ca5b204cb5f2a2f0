"""Question answering: a prompt is given, the answer and its end are learned, generated and scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, Template, Truncate, encode_rows, prompt_ids
from limbeck.data.readers import Dialect, Rows, read
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.overlap import BLEU_TOKENISATION, exact_match, sentence_bleu, token_f1
from limbeck.measure.perplexity import NATS_PER_TOKEN, PERPLEXITY
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, mean
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.fitting import Fitting
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["QuestionAnswering"]

_SHOWN = 3
_BLEU = f"mean of sentence BLEU, nltk smoothing method 4, 0 to 100; {BLEU_TOKENISATION}"


class QuestionAnswering(Task):
    """Rows ``question, answer`` under the template of system D; other columns and templates by option."""

    name: ClassVar[str] = "qa"
    required: ClassVar[tuple[str, ...]] = ("question", "answer")
    split_by: ClassVar[str | None] = "question"

    kind: Literal["qa"] = "qa"
    prompt: str = Field("Question: {question}\nAnswer:", description="what is given; {field} stands for a column")
    answer: str = Field(" {answer}", description="what is learned")
    truncate: Truncate = Field("prompt_left", description="what gives way where a row is longer than the context")
    empty: Literal["error", "count"] = Field("error", description="a row with nothing to learn: an error, or counted")
    begin: bool | None = Field(None, description="put the begin token before each row; none: as the tokenizer does")

    @property
    def template(self) -> Template:
        """Prompt and answer."""
        return Template(prompt=self.prompt, answer=self.answer)

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read questions and answers; with ``empty`` count, rows that lack one are left out and counted."""
        return read(
            source,
            required=self.required,
            columns=columns or None,
            limit=limit,
            separator=separator,
            dialect=dialect,
            missing="drop" if self.empty == "count" else "error",
        )

    def predicts(self, measuring: Measuring) -> bool:
        """Return whether answers are generated."""
        return measuring.generate

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode prompt and answer; the answer's tokens and the end token are learned."""
        return encode_rows(
            rows,
            tokenizer,
            context,
            template=self.template,
            truncate=self.truncate,
            bos=self.begin,
            on_empty=self.empty,
        )

    def objective(self) -> AnyObjective:
        """Return the likelihood of the answers."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return nats an answer token and perplexity; of what was generated BLEU, F1, exact match and the share that
        ended.
        """
        known = (
            NATS_PER_TOKEN,
            PERPLEXITY,
            mean("bleu", unit="BLEU", bounds=(0, 100)),
            mean("f1", bounds=(0, 1)),
            mean("exact", bounds=(0, 1)),
            mean("ended", bounds=(0, 1)),
        )
        return tuple(s for s in known if set(s.columns) - {COUNT} <= set(columns))

    def decoding(self) -> Decoding:
        """Return sampling as system D does: T 0.7, top-k 50, top-p 0.95, 120 tokens."""
        return Decoding(max_new_tokens=120, temperature=0.7, top_k=50, top_p=0.95, truncate_prompts=True)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the likelihood of the answers, and the overlap of generated answers with them."""
        context = min(measuring.context or model.config.context, model.config.context)
        examples, report = self.encode(rows, tokenizer, context)
        kept = [rows[e.row] for e in examples]
        columns: dict[str, np.ndarray] = {
            "nll": nll_sums(model, examples, measuring.batch_size),
            "tokens": np.array([e.predictions for e in examples], dtype=np.float64),
        }
        predictions: dict[str, str] = {}
        notes: dict[str, Any] = {**report.describe(), "dropped_rows": len(rows.dropped)}
        if measuring.generate:
            prompts = [prompt_ids(row, self.template, tokenizer, bos=self.begin) for row in kept]
            fitting = Fitting.of(model, decoding, prompts)
            decoding, notes = fitting.decoding, notes | fitting.notes()
            out = generate(model, tokenizer, prompts, decoding, batch_size=measuring.batch_size)
            answers = [self.template.render_answer(row).strip() for row in kept]
            texts = [some[0].text.strip() for some in out]
            predictions = {row.id: text for row, text in zip(kept, texts, strict=True)}
            columns |= _overlap(texts, answers)
            columns["ended"] = np.array([float(some[0].stopped == "end") for some in out])
        protocol = {
            "corpus": rows.source,
            "context": context,
            "prompt": self.prompt,
            "answer": self.answer,
            "scored": "answer tokens and the end token",
            "decoding": decoding.model_dump(mode="json") if measuring.generate else None,
            "bleu": _BLEU,
        }
        shown = [
            (self.template.render_prompt(row), predictions[row.id], self.template.render_answer(row).strip())
            for row in kept[:_SHOWN]
            if predictions
        ]
        return Result(Scores.of([r.id for r in kept], **columns), protocol, shown, notes, predictions)

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return BLEU, F1 and exact match of answers from a file."""
        answers = [self.template.render_answer(row, rows.source).strip() for row in rows]
        columns = _overlap([predictions[row.id].strip() for row in rows], answers)
        protocol = {"corpus": rows.source, "answer": self.answer, "bleu": _BLEU}
        return Result(Scores.of(predictions, **columns), protocol, predictions=predictions)


def _overlap(texts: list[str], answers: list[str]) -> dict[str, np.ndarray]:
    return {
        "bleu": sentence_bleu(texts, answers),
        "f1": token_f1(texts, answers),
        "exact": exact_match(texts, answers),
    }
