"""Instructions and chats: answers and their ends are learned; likelihood, and whether a model stops, are measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.chat import ChatTemplate
from limbeck.data.dialect import Dialect
from limbeck.data.instructions import encode_conversations, read_instructions, turns_of
from limbeck.data.prompts import EncodingReport, Truncate
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.perplexity import NATS_PER_TOKEN, PERPLEXITY
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, ratio, share
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.fitting import Fitting
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["Instructions"]

_SHOWN = 3
_LONGEST = 4096  # tokens of an answer where nothing else limits it


class Instructions(Task):
    """Rows ``instruction, input, output`` (Alpaca), ``prompt, completion``, or ``messages`` of several turns.

    A chat template lays them out; it is saved with the model. Every answer and its end token are learned. An evaluation
    tells the last answer's likelihood, and lets the model answer: sampled at temperature 0.7 and greedily, for at most
    twice the 95th percentile of the references' tokens.
    """

    name: ClassVar[str] = "instructions"
    required: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    split_by: ClassVar[str | None] = "prompt"

    kind: Literal["instructions"] = "instructions"
    template: str = Field(
        "auto",
        description="chat template: auto (the model's own, else turns), turns, bare, a .jinja file, or Jinja text",
        json_schema_extra={"verbatim": True},
    )
    truncate: Truncate = Field("prompt_left", description="what gives way where a row is longer than the context")
    empty: Literal["error", "count"] = Field(
        "error", description="a row with a blank answer, or none left in the context: an error, or counted"
    )
    begin: bool | None = Field(None, description="put the begin token before each row; none: as the tokenizer does")
    end: bool = Field(True, description="learn the end token after each answer; without it a model never stops")

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read conversations; blank answers are errors, or left out and counted."""
        return read_instructions(source, columns=columns or None, limit=limit, dialect=dialect, empty=self.empty)

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Return the tokenizer with the chat template that is learned, and its begin token or none."""
        trained = tokenizer.without_begin() if self.begin is False and tokenizer.begins_with_bos else tokenizer
        return trained.with_chat_template(self._chat(tokenizer).text)

    def _chat(self, tokenizer: Tokenizer) -> ChatTemplate:
        return ChatTemplate.named(self.template, tokenizer, begin=self.begin, end=self.end)

    def predicts(self, measuring: Measuring) -> bool:
        """Return whether answers are generated."""
        return measuring.generate

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode conversations; the answers' tokens and their end tokens are learned."""
        return encode_conversations(rows, self._chat(tokenizer), context, truncate=self.truncate, on_empty=self.empty)

    def objective(self) -> AnyObjective:
        """Return the likelihood of the answers."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return nats an answer token and perplexity; the shares of answers that end, and their length by the
        references'.
        """
        if "ended" not in columns:
            return (NATS_PER_TOKEN, PERPLEXITY)
        return (
            NATS_PER_TOKEN,
            PERPLEXITY,
            share("ended", "stop rate, sampled"),
            share("ended_greedy", "stop rate, greedy"),
            ratio("written", "reference", name="length ratio, sampled"),
            ratio("written_greedy", "reference", name="length ratio, greedy"),
        )

    def decoding(self) -> Decoding:
        """Return sampling at temperature 0.7; how long is taken from the references."""
        return Decoding(max_new_tokens=_LONGEST, temperature=0.7, truncate_prompts=True)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the likelihood of all answers of each conversation, and generate the last, sampled and greedily."""
        context = min(measuring.context or model.config.context, model.config.context)
        template = self._chat(tokenizer)
        examples, report = self.encode(rows, tokenizer, context)
        kept = [rows[e.row] for e in examples]
        columns: dict[str, NDArray[np.float64]] = {
            "nll": nll_sums(model, examples, measuring.batch_size),
            "tokens": np.array([float(e.predictions) for e in examples]),
        }
        predictions: dict[str, str] = {}
        limit: int | None = None
        notes: dict[str, Any] = {**report.describe(), "dropped_rows": len(rows.dropped)}
        if measuring.generate:
            # one limit, whether or not ends were learned
            ending = ChatTemplate(template.text, tokenizer, begin=self.begin)
            reference = np.array([float(len(_answer_ids(row, ending))) for row in kept])
            wanted = min(math.ceil(2 * np.percentile(reference, 95)), decoding.max_new_tokens)
            prompts = [template.prompt_ids(turns_of(row)[:-1]) for row in kept]
            asked = decoding.model_copy(update={"max_new_tokens": wanted, "truncate_prompts": True})
            fitting = Fitting.of(model, asked, prompts)
            decoding, notes = fitting.decoding, notes | fitting.notes()
            limit = decoding.max_new_tokens
            greedy = Decoding(max_new_tokens=limit, truncate_prompts=True)
            columns["reference"] = reference
            for name, how in (("", decoding), ("_greedy", greedy)):
                out = generate(model, tokenizer, prompts, how, batch_size=measuring.batch_size)
                columns[f"ended{name}"] = np.array([float(some[0].stopped == "end") for some in out])
                columns[f"written{name}"] = np.array([float(some[0].tokens) for some in out])
                if not name:
                    predictions = {row.id: some[0].text.strip() for row, some in zip(kept, out, strict=True)}
        protocol = {
            "corpus": rows.source,
            "context": context,
            "template": template.text,
            "scored": "answer tokens" + (" and their end tokens" if self.end else ", no end token"),
            "decoding": decoding.model_dump(mode="json") if measuring.generate else None,
            "limit_tokens": limit,
            "limit": "twice the 95th percentile of the references' tokens, at most half of the context",
        }
        scores = Scores.of([r.id for r in kept], **columns)
        return Result(scores, protocol, _samples(kept, template, predictions), notes, predictions)


def _answer_ids(row: Row, template: ChatTemplate) -> list[int]:
    """Tokens of the last answer of ``row``, its end token included."""
    turns = turns_of(row)
    ids, _ = template.encode(turns)
    return ids[len(template.prompt_ids(turns[:-1])) :]


def _samples(rows: Sequence[Row], template: ChatTemplate, texts: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [
        (f"{template.render(turns_of(row)[:-1], answer=True)} ", texts[row.id], row.fields["answer"])
        for row in rows[:_SHOWN]
        if texts
    ]
