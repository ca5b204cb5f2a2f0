"""Language modelling on documents: stories, articles, verse, anything that is text."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, encode_rows
from limbeck.data.readers import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.measure.perplexity import NATS_PER_TOKEN, PerplexityProtocol, nats_per, perplexity, perplexity_per
from limbeck.measure.protocols import PROTOCOLS, ProtocolName
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
    from_corpora: ClassVar[bool] = True

    kind: Literal["text"] = "text"
    protocol: ProtocolName | None = Field(
        None,
        description="measure perplexity under this published or project protocol, which settles corpus, split, "
        "tokenisation, context, stride and normaliser; none: what the other options say",
    )
    mode: Literal["documents", "stream"] = Field("documents", description="score each document alone, or one stream")
    stride: int = Field(0, ge=0, description="tokens between windows; 0: as many as the context, nothing overlaps")
    begin: bool | None = Field(
        None, description="put the begin token before each document; none: wherever there is one"
    )
    end: bool = Field(True, description="learn and score the end token after each document")
    truncate: bool = Field(False, description="score only the first window of a document")
    overlap: int = Field(1, ge=0, description="tokens that training chunks of a long document share, as context only")
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-normaliser, which keeps logits small")

    @model_validator(mode="after")
    def _protocol_is_whole(self) -> Text:
        fixed = ("mode", "stride", "begin", "end", "truncate")
        other = [name for name in fixed if getattr(self, name) != type(self).model_fields[name].default]
        if self.protocol is not None and other:
            raise ValueError(f"protocol {self.protocol} settles '{other[0]}' itself: leave one of them out")
        return self

    def begins(self, tokenizer: Tokenizer) -> bool:
        """Return whether the begin token stands before each document."""
        return tokenizer.bos_id is not None if self.begin is None else self.begin

    def document_marks(self, tokenizer: Tokenizer) -> tuple[bool, bool]:
        """Return the begin token as ``begins`` says, the end token as ``end``."""
        return self.begins(tokenizer), self.end

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
        """Return the likelihood of every next token."""
        return NextToken(z_loss=self.z_loss)

    def settings(self, tokenizer: Tokenizer, corpus: str, context: int | None) -> PerplexityProtocol:
        """Return what its perplexity rests on.

        Raises:
            ConfigError: another context is asked for than that of the named protocol.
        """
        if self.protocol is not None:
            named = PROTOCOLS[self.protocol].settings
            if context not in (None, named.context):
                raise ConfigError(f"protocol {self.protocol} has a context of {named.context}, not {context}")
            return named
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
        """Return nats a token, word and byte; under a named protocol its perplexity comes first."""
        nats = (NATS_PER_TOKEN, nats_per("word"), nats_per("byte"))
        return nats if self.protocol is None else (perplexity_per(PROTOCOLS[self.protocol].settings.unit), *nats)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the perplexity of every document, and continue a few from their first words to look at."""
        documents = {row.id: row.text("text", rows.source) for row in rows}
        protocol = self.settings(tokenizer, rows.source, measuring.context)
        told = () if self.protocol is None else PROTOCOLS[self.protocol].check(documents, rows.source)
        found = perplexity(model, tokenizer, documents, protocol, batch_size=measuring.batch_size)
        notes = found.describe()  # all that is not its protocol is a finding: it differs from model to model
        alike = {"tokenisation": notes.pop("tokenisation"), **notes.pop("protocol")}
        if self.protocol is not None:
            alike |= {"name": self.protocol, "text": PROTOCOLS[self.protocol].about}
        notes["told"] = list(told)
        samples = self._samples(model, tokenizer, rows, decoding) if measuring.generate else []
        return Result(found.scores, alike, samples, notes)

    def predicts(self, measuring: Measuring) -> bool:
        """Return false: the few samples are only to look at."""
        return False

    def decoding(self) -> Decoding:
        """Return greedy decoding, a few sentences long."""
        return Decoding(max_new_tokens=48)

    def _samples(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, decoding: Decoding
    ) -> list[tuple[str, str, str]]:
        starts, rests = [], []
        for row in rows.rows[:_SHOWN]:
            words = row.text("text", rows.source).split(" ")
            starts.append(" ".join(words[:6]))
            rests.append(" ".join(words[6:30]))
        head = [tokenizer.bos_id] if self.begins(tokenizer) and tokenizer.bos_id is not None else []
        prompts = [head + tokenizer.encode(start) for start in starts]
        fitting = decoding.model_copy(
            update={"max_new_tokens": min(decoding.max_new_tokens, model.config.context // 2), "truncate_prompts": True}
        )
        out = generate(model, tokenizer, prompts, fitting)
        return [(s, some[0].text, rest) for s, some, rest in zip(starts, out, rests, strict=True)]
