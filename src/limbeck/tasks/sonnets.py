"""Sonnets: whole poems are learned, and continued from their first three lines."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, encode_rows
from limbeck.data.readers import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.overlap import CHRF, chrf_columns
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["Sonnets"]

_NUMBER = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)
"""A line with a poem's number alone, as the course's files have it."""


class Sonnets(Task):
    """Poems in a field ``text``, or in the course's format: a title page, then number and poem in turn."""

    name: ClassVar[str] = "sonnets"
    required: ClassVar[tuple[str, ...]] = ("text",)

    kind: Literal["sonnets"] = "sonnets"
    given_lines: int = Field(3, ge=1, description="lines of a poem that are given when it is continued")
    begin: bool | None = Field(None, description="put the begin token before each poem; none: wherever there is one")

    def read(self, source: str, *, columns: Mapping[str, str], limit: int | None, separator: str) -> Rows:
        """Read a table with a field ``text``, ``toy:verse``, or the course's text format."""
        path = Path(source)
        if path.suffix != ".txt" or not path.is_file():
            return super().read(source, columns=columns, limit=limit, separator=separator)
        text = path.read_text(encoding="utf-8")
        pieces = _NUMBER.split(text)
        if len(pieces) < 3:
            return super().read(source, columns=columns, limit=limit, separator=separator)
        poems = [(number, _poem(body)) for number, body in zip(pieces[1::2], pieces[2::2], strict=True)]
        rows = [Row(f"sonnet:{number}", {"number": int(number), "text": poem}) for number, poem in poems if poem]
        if not rows:
            raise DataError(f"{source} has numbers but no poem below any of them")
        return Rows.of(rows[:limit], source)

    def _begin(self, tokenizer: Tokenizer) -> bool:
        return tokenizer.bos_id is not None if self.begin is None else self.begin

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Whole poems with their end token."""
        return encode_rows(rows, tokenizer, context, overlap=1, bos=self._begin(tokenizer))

    def objective(self) -> AnyObjective:
        """The likelihood of every next token."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Nats a token of whole poems; corpus chrF of the continued ones."""
        return (NATS_PER_TOKEN, *([CHRF] if set(CHRF.columns) <= set(columns) else []))

    def decoding(self) -> Decoding:
        """Sampling as the course's baseline does: temperature 1.2, top-p 0.9."""
        return Decoding(max_new_tokens=220, temperature=1.2, top_p=0.9, truncate_prompts=True)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Likelihood of the poems; chrF of continuations against the whole poem, given lines included."""
        context = min(measuring.context or model.config.context, model.config.context)
        examples, report = self.encode(rows, tokenizer, context)
        chunks = nll_sums(model, examples, measuring.batch_size)
        nll, tokens = np.zeros(len(rows)), np.zeros(len(rows))
        np.add.at(nll, [e.row for e in examples], chunks)
        np.add.at(tokens, [e.row for e in examples], [e.predictions for e in examples])
        columns: dict[str, np.ndarray] = {"nll": nll, "tokens": tokens}
        predictions: dict[str, str] = {}
        if measuring.generate:
            predictions = self._continue(model, tokenizer, rows, measuring, decoding)
            columns |= chrf_columns(list(predictions.values()), [str(r.fields["text"]) for r in rows])
        protocol = {
            "corpus": rows.source,
            "context": context,
            "unit": "token",
            "end_token": True,
            "begin_token": self._begin(tokenizer),
            "given_lines": self.given_lines,
            "decoding": decoding.model_dump(mode="json") if measuring.generate else None,
            "chrf": "sacrebleu CHRF corpus score of whole poems, given lines included",
        }
        shown = [
            (self._given(r), predictions[r.id].removeprefix(self._given(r)), "") for r in rows.rows[:1] if predictions
        ]
        return Result(Scores.of([r.id for r in rows], **columns), protocol, shown, report.describe(), predictions)

    def _given(self, row: Row) -> str:
        return "\n".join(str(row.fields["text"]).split("\n")[: self.given_lines]) + "\n"

    def _continue(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> dict[str, str]:
        head = [tokenizer.bos_id] if self._begin(tokenizer) and tokenizer.bos_id is not None else []
        given = [self._given(row) for row in rows]
        prompts = [head + tokenizer.encode(text) for text in given]
        out = generate(model, tokenizer, prompts, decoding, batch_size=measuring.batch_size)
        return {row.id: text + some[0].text for row, text, some in zip(rows, given, out, strict=True)}


def _poem(body: str) -> str:
    """The lines of a poem, blank ones and the couplet's indent left out."""
    return "\n".join(line.strip() for line in body.splitlines() if line.strip())
