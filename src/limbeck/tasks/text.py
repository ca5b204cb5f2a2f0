"""Language modelling on documents: stories, articles, verse, anything that is text."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, encode_rows
from limbeck.data.readers import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.perplexity import NATS_PER_TOKEN, PerplexityProtocol, nats_per, perplexity
from limbeck.measure.statistic import Statistic
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["Text"]

_SHOWN = 2  # documents continued for people to look at


class Text(Task):
    """Documents in a field ``text``: every token is learned, perplexity is measured under a named protocol."""

    name: ClassVar[str] = "text"
    required: ClassVar[tuple[str, ...]] = ("text",)

    kind: Literal["text"] = "text"
    mode: Literal["documents", "stream"] = Field("documents", description="score each document alone, or one stream")
    stride: int = Field(0, ge=0, description="tokens between windows; 0: as many as the context, nothing overlaps")
    begin: bool | None = Field(
        None, description="put the begin token before each document; none: wherever there is one"
    )
    end: bool = Field(True, description="learn and score the end token after each document")
    truncate: bool = Field(False, description="score only the first window of a document")
    overlap: int = Field(1, ge=0, description="tokens that training chunks of a long document share, as context only")
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-normaliser, which keeps logits small")

    def begins(self, tokenizer: Tokenizer) -> bool:
        """Whether the begin token stands before each document."""
        return tokenizer.bos_id is not None if self.begin is None else self.begin

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Cut documents into chunks of the context; empty ones are counted."""
        return encode_rows(
            rows,
            tokenizer,
            context,
            overlap=min(self.overlap, context - 1),
            end_token=self.end,
            bos=self.begins(tokenizer),
            on_empty="count",
        )

    def objective(self) -> AnyObjective:
        """The likelihood of every next token."""
        return NextToken(z_loss=self.z_loss)

    def protocol(self, tokenizer: Tokenizer, corpus: str, context: int | None) -> PerplexityProtocol:
        """What its perplexity rests on."""
        return PerplexityProtocol(
            corpus=corpus,
            mode=self.mode,
            context=context or 0,
            stride=self.stride,
            begin=self.begins(tokenizer),
            end=self.end,
            truncate=self.truncate,
        )

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Nats a token, word and byte."""
        return (NATS_PER_TOKEN, nats_per("word"), nats_per("byte"))

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Perplexity of every document, and a few continued from their first words to look at."""
        documents = {row.id: str(row.value("text", rows.source)) for row in rows}
        protocol = self.protocol(tokenizer, rows.source, measuring.context)
        found = perplexity(model, tokenizer, documents, protocol, batch_size=measuring.batch_size)
        notes = found.describe()  # all that is not its protocol is a finding: it differs from model to model
        alike = {"tokenisation": notes.pop("tokenisation"), **notes.pop("protocol")}
        samples = self._samples(model, tokenizer, rows, decoding) if measuring.generate else []
        return Result(found.scores, alike, samples, notes)

    def predicts(self, measuring: Measuring) -> bool:
        """Nothing: the few samples are only to look at."""
        return False

    def decoding(self) -> Decoding:
        """Greedy, a few sentences."""
        return Decoding(max_new_tokens=48)

    def _samples(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, decoding: Decoding
    ) -> list[tuple[str, str, str]]:
        starts, rests = [], []
        for row in rows.rows[:_SHOWN]:
            words = str(row.value("text", rows.source)).split(" ")
            starts.append(" ".join(words[:6]))
            rests.append(" ".join(words[6:30]))
        head = [tokenizer.bos_id] if self.begins(tokenizer) and tokenizer.bos_id is not None else []
        prompts = [head + tokenizer.encode(start) for start in starts]
        fitting = decoding.model_copy(
            update={"max_new_tokens": min(decoding.max_new_tokens, model.config.context // 2), "truncate_prompts": True}
        )
        out = generate(model, tokenizer, prompts, fitting)
        return [(s, some[0].text, rest) for s, some, rest in zip(starts, out, rests, strict=True)]
