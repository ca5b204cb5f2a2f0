"""Preferences: of two answers to one prompt one is preferred; is it the likelier one?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.chat import ChatTemplate
from limbeck.data.dialect import Dialect
from limbeck.data.pairs import encode_pairs
from limbeck.data.preferences import read_preferences
from limbeck.data.prompts import EncodingReport, Truncate
from limbeck.data.rows import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, ratio, share
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["Preferences"]

_SHOWN = 2


class Preferences(Task):
    """Pairs of a chosen and a rejected answer, in any of the public formats; ``limbeck dpo`` learns from both.

    Without it, by ``finetune`` or ``distill``, the chosen answers alone are learned. The main figure is the share of
    pairs whose chosen answer has the greater log-probability a token; a tie counts half, and chance is a half.
    """

    name: ClassVar[str] = "preferences"
    required: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    split_by: ClassVar[str | None] = "prompt"

    kind: Literal["preferences"] = "preferences"
    template: str = Field(
        "auto",
        description="chat template: auto (the model's own, else turns), turns, bare, a .jinja file, or Jinja text",
        json_schema_extra={"verbatim": True},
    )
    truncate: Truncate = Field("prompt_left", description="what gives way where a side is longer than the context")
    empty: Literal["error", "count"] = Field(
        "error", description="a pair with a blank answer, or none left in the context: an error, or counted"
    )
    equal: Literal["error", "count"] = Field("error", description="a pair with equal answers: an error, or counted")
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
        """Read pairs; blank and equal answers are errors, or left out and counted."""
        return read_preferences(
            source, columns=columns or None, limit=limit, dialect=dialect, empty=self.empty, equal=self.equal
        )

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Return the tokenizer with the chat template that is learned, and its begin token or none."""
        trained = tokenizer.without_begin() if self.begin is False and tokenizer.begins_with_bos else tokenizer
        return trained.with_chat_template(self._chat(tokenizer).text)

    def _chat(self, tokenizer: Tokenizer) -> ChatTemplate:
        return ChatTemplate.named(self.template, tokenizer, begin=self.begin)

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode pairs: examples of the chosen answers, with the rejected ones beside them."""
        pairs, report = encode_pairs(rows, self._chat(tokenizer), context, truncate=self.truncate, on_empty=self.empty)
        return list(pairs), report

    def objective(self) -> AnyObjective:
        """Return the likelihood of the chosen answers; the verb dpo has one of its own."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return accuracies, what always taking the shorter answer would have, and nats a token of both sides."""
        return (
            share("correct", "accuracy"),
            share("correct_by_sum", "accuracy by sum"),
            share("shorter", "shorter is chosen"),
            ratio("margin", COUNT, name="margin per token", unit="nats/token"),
            NATS_PER_TOKEN,
            ratio(
                "rejected_nll",
                "rejected_tokens",
                name="nats per rejected token",
                unit="nats/token",
                bounds=(0, math.inf),
            ),
        )

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the log-probability of both answers to every prompt."""
        context = min(measuring.context or model.config.context, model.config.context)
        template = self._chat(tokenizer)
        pairs, report = encode_pairs(rows, template, context, truncate=self.truncate, on_empty=self.empty)
        kept = [rows[pair.row] for pair in pairs]
        chosen, tokens = _measured(model, pairs, measuring.batch_size)
        rejected, others = _measured(model, [pair.rejected for pair in pairs], measuring.batch_size)
        margin = rejected / others - chosen / tokens  # of log-probabilities a token
        scores = Scores.of(
            [row.id for row in kept],
            correct=_greater(margin),
            correct_by_sum=_greater(rejected - chosen),
            shorter=_greater(others - tokens),
            margin=margin,
            nll=chosen,
            tokens=tokens,
            rejected_nll=rejected,
            rejected_tokens=others,
        )
        protocol = {
            "corpus": rows.source,
            "context": context,
            "template": template.text,
            "truncate": self.truncate,
            "scored": "log-probability of each answer and its end token; accuracy compares means a token",
        }
        told = {side: [row.fields[side] for row in kept] for side in ("chosen", "rejected")}
        likelier = {row.id: "chosen" if m > 0 else "rejected" for row, m in zip(kept, margin, strict=True)}
        samples = [
            (f"{kept[i].fields['prompt']}\n", told[likelier[kept[i].id]][i], told["chosen"][i])
            for i in range(min(_SHOWN, len(kept)))
        ]
        notes = {**report.describe(), "dropped_rows": len(rows.dropped)}
        return Result(scores, protocol, samples, notes, likelier)


def _measured(
    model: Decoder, examples: Sequence[Example], batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) nats and (n,) tokens of the answers."""
    return nll_sums(model, examples, batch_size), np.array([float(e.predictions) for e in examples])


def _greater(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 above 0, 0.5 at 0, 0 below."""
    return (np.sign(difference) + 1) / 2
