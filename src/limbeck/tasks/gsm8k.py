"""GSM8K: grade-school problems, solved in writing; the answer is found strictly and flexibly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, Template, Truncate, encode_rows, prompt_ids
from limbeck.data.readers import Row, Rows, read
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.reasoning import flexible_answer, gold_answer, same_number, strict_answer
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, ratio
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.fitting import Fitting
from limbeck.tasks.shots import draw_shots
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["GSM8K"]

_FIGURES = (
    ratio("strict", COUNT, name="exact match, strict", bounds=(0, 1)),
    ratio("flexible", COUNT, name="exact match, flexible", bounds=(0, 1)),
    ratio("has_answer", COUNT, name="wrote an answer", bounds=(0, 1)),
    ratio("ended", COUNT, name="ended", bounds=(0, 1)),
)


class GSM8K(Task):
    """Rows ``question, answer``, the answer a worked solution that ends in ``#### 18`` (Cobbe et al. 2021)."""

    name: ClassVar[str] = "gsm8k"
    required: ClassVar[tuple[str, ...]] = ("question", "answer")
    split_by: ClassVar[str | None] = "question"

    kind: Literal["gsm8k"] = "gsm8k"
    prompt: str = Field("Question: {question}\nAnswer:", description="what is given; {field} stands for a column")
    answer: str = Field(" {answer}", description="what is learned, the worked solution")
    shots: int = Field(0, ge=0, le=8, description="solved problems shown before each question")
    examples: str | None = Field(None, description="rows that these are drawn from, such as the training file")
    shot_seed: int = Field(0, ge=0, description="seed of the drawing")
    truncate: Truncate = Field("prompt_left", description="what gives way where a row is longer than the context")
    begin: bool | None = Field(None, description="put the begin token before each row; none: as the tokenizer does")

    @property
    def template(self) -> Template:
        """Prompt and answer of one row."""
        return Template(prompt=self.prompt, answer=self.answer)

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode question and solution, without examples; the solution and the end token are learned."""
        return encode_rows(rows, tokenizer, context, template=self.template, truncate=self.truncate, bos=self.begin)

    def objective(self) -> AnyObjective:
        """Return the likelihood of the solutions."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return exact match, strict then flexible, of what was generated; nats a token of the reference solutions."""
        return tuple(s for s in (*_FIGURES, NATS_PER_TOKEN) if set(s.columns) - {COUNT} <= set(columns))

    def predicts(self, measuring: Measuring) -> bool:
        """Return whether solutions are generated."""
        return measuring.generate

    def decoding(self) -> Decoding:
        """Return greedy decoding; a next question ends it."""
        return Decoding(max_new_tokens=256, stop=("\nQuestion:",), truncate_prompts=True)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the likelihood of the solutions, and solve every question if generating is asked for."""
        gold = [self._gold(row, rows.source) for row in rows]
        context = min(measuring.context or model.config.context, model.config.context)
        examples, report = self.encode(rows, tokenizer, context)
        kept = [e.row for e in examples]
        rows, gold = Rows.of((rows[i] for i in kept), rows.source), [gold[i] for i in kept]
        columns: dict[str, np.ndarray] = {
            "nll": nll_sums(model, examples, measuring.batch_size),
            "tokens": np.array([e.predictions for e in examples], dtype=np.float64),
        }
        notes = dict(report.describe())
        predictions: dict[str, str] = {}
        if measuring.generate:
            texts, ended, fitting = self._solve(model, tokenizer, rows, measuring, decoding)
            predictions = {row.id: text for row, text in zip(rows, texts, strict=True)}
            columns |= _scored(texts, gold) | {"ended": np.array(ended, dtype=np.float64)}
            decoding, notes = fitting.decoding, notes | fitting.notes()
        protocol = {
            "context": context,
            "prompt": self.prompt,
            "shots": self.shots,
            "shot_seed": self.shot_seed if self.shots else None,
            "examples": self.examples if self.shots else None,
            "decoding": decoding.model_dump(mode="json") if measuring.generate else None,
            **self._scoring(rows),
        }
        shown = [
            (self.template.render_prompt(r), predictions[r.id], r.text("answer")) for r in rows.rows[:2] if predictions
        ]
        return Result(Scores.of([r.id for r in rows], **columns), protocol, shown, notes, predictions)

    def _scoring(self, rows: Rows) -> dict[str, object]:
        return {
            "corpus": rows.source,
            "strict": "the number after the first ####",
            "flexible": "the last number of the text",
            "match": "equal as numbers",
        }

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return strict and flexible match of solutions from a file."""
        gold = [self._gold(row, rows.source) for row in rows]
        columns = _scored([predictions[row.id] for row in rows], gold)
        return Result(Scores.of(predictions, **columns), self._scoring(rows), predictions=predictions)

    def _gold(self, row: Row, source: str) -> Decimal:
        found = gold_answer(row.text("answer", source))
        if found is None:
            raise DataError(
                f"the solution of row {row.id} of {source} holds no one clear number after '####': write it as 1234.5"
            )
        return found

    def _solve(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> tuple[list[str], list[bool], Fitting]:
        """Return generated texts, whether each ended of itself, and how prompts and new tokens fit into the context."""
        source = None
        if self.shots and self.examples is not None:
            source = read(self.examples, required=self.required)
        drawn = draw_shots(source, rows, self.shots, self.shot_seed, by="question")
        shown = "".join(self.template.render_prompt(r) + self.template.render_answer(r) + "\n\n" for r in drawn)
        template = Template(prompt=shown.replace("{", "{{").replace("}", "}}") + self.prompt, answer=self.answer)
        prompts = [prompt_ids(row, template, tokenizer, bos=self.begin) for row in rows]
        fitting = Fitting.of(model, decoding.model_copy(update={"truncate_prompts": True}), prompts)
        out = generate(model, tokenizer, prompts, fitting.decoding, batch_size=measuring.batch_size)
        return [some[0].text for some in out], [some[0].stopped != "length" for some in out], fitting


def _scored(texts: list[str], gold: list[Decimal]) -> dict[str, np.ndarray]:
    strict, flexible = [strict_answer(t) for t in texts], [flexible_answer(t) for t in texts]
    return {
        "strict": np.array([float(same_number(f, g)) for f, g in zip(strict, gold, strict=True)]),
        "flexible": np.array([float(same_number(f, g)) for f, g in zip(flexible, gold, strict=True)]),
        "has_answer": np.array([float(f is not None) for f in strict]),
    }
