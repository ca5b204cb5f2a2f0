"""Perplexity under a protocol that is part of the figure: corpus, windows, what is scored, and the normaliser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.data.batch import Example
from limbeck.data.tokenizer import TextStream, Tokenizer
from limbeck.errors import ConfigError, DataError
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, ratio
from limbeck.model.decoder import Decoder

__all__ = [
    "NATS_PER_TOKEN",
    "PERPLEXITY",
    "Perplexity",
    "PerplexityProtocol",
    "nats_per",
    "perplexity",
    "perplexity_per",
]

Unit = Literal["token", "word", "byte"]
Floats = NDArray[np.float64]

NATS_PER_TOKEN = ratio("nll", "tokens", name="nats per token", better="lower", unit="nats/token", bounds=(0, math.inf))
"""The figure that trains and compares models of one tokenizer."""


def _exp_of(statistic: Statistic, name: str) -> Statistic:
    def of_sums(sums: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(statistic.of_sums(sums)))

    return Statistic(name, statistic.columns, of_sums, "lower", bounds=(1, math.inf), log=True)


PERPLEXITY = _exp_of(NATS_PER_TOKEN, "perplexity")
"""exp of the nats a token, every token of the set weighing the same: no mean of the items' perplexities."""


class PerplexityProtocol(Config):
    """What must be equal for two perplexities to be compared.

    Windows are those of transformers' guide: each holds ``context`` tokens and begins ``stride`` after the one before,
    and only tokens that no earlier window held are scored. (The guide weighs each window by one token less than its
    mean is taken over; here every token counts once.) Stride 0 is a stride of ``context``: nothing overlaps, and the
    first token of every window but one behind a begin token is not predicted at all.
    """

    corpus: str = Field("", description="name of the text, for the record")
    split: str = Field("", description="which part of it, for the record")
    mode: Literal["documents", "stream"] = Field("documents", description="each document alone, or all as one stream")
    context: int = Field(0, ge=0, description="tokens a window, begin token included; 0: the model's own context")
    stride: int = Field(0, ge=0, description="tokens from window to window; 0: as many as the context")
    begin: bool = Field(True, description="put the begin token (the end token where there is none) before each text")
    end: bool = Field(False, description="score an end token after each text")
    truncate: bool = Field(False, description="score only the first window of a document")
    separator: str = Field("\n\n", description="what joins the documents of a stream")
    unit: Unit = Field("token", description="normaliser of the headline perplexity")

    @model_validator(mode="after")
    def _agrees(self) -> PerplexityProtocol:
        if self.context and self.stride > self.context:
            raise ValueError(f"a stride of {self.stride} skips tokens between windows of {self.context}: lower it")
        if self.context == 1:
            raise ValueError("a context of 1 token predicts nothing: it takes 2 at least")
        if self.truncate and self.mode == "stream":
            raise ValueError("truncate is for documents: a stream would be cut to one window")
        return self

    def fitted(self, model: Decoder) -> PerplexityProtocol:
        """Fill in the model's context and the stride.

        Raises:
            ConfigError: learned positions do not reach ``context``, or the stride is larger.
        """
        context = self.context or model.config.context
        if model.config.positions == "learned" and context > model.config.context:
            reach = model.config.context
            raise ConfigError(f"a context of {context} is more than the model's {reach} learned positions: lower it")
        if self.stride > context:
            raise ConfigError(f"a stride of {self.stride} skips tokens between windows of {context}: lower it")
        return self.model_copy(update={"context": context, "stride": self.stride or context})


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A perplexity with everything it rests on.

    ``tokens`` were predicted; ``text_tokens`` is what the text (and end tokens) was cut into. Without a begin token,
    or with windows that do not overlap, a few are not predicted: per-word and per-byte figures are the mean over
    predicted tokens times ``text_tokens`` per word or byte, so that they do not profit from what was left out.

    Attributes:
        scores: one row a document, or a window of a stream: ``nll`` in nats, ``tokens``, ``text_tokens``, ``words``
            (separated by white space) and ``bytes`` (of UTF-8).
        protocol: with context and stride filled in.
        tokenisation: size and fingerprint of the tokenizer.
        unscored: ids of items in which no token could be predicted.
        truncated: documents that were cut at the first window.
    """

    scores: Scores
    protocol: PerplexityProtocol
    tokenisation: str
    unscored: tuple[str, ...]
    truncated: int

    def total(self, column: str) -> float:
        """Sum over all items of one score."""
        return float(self.scores[column].sum())

    def nats_per(self, unit: Unit) -> float:
        """Return nats a token, word or byte."""
        return nats_per(unit).value(self.scores)

    @property
    def bits_per_byte(self) -> float:
        """The figure that compares models of different tokenizers."""
        return self.nats_per("byte") / math.log(2)

    @property
    def value(self) -> float:
        """Perplexity by the protocol's unit; infinite where that overflows."""
        nats = self.nats_per(self.protocol.unit)
        return math.exp(nats) if nats < 700 else math.inf

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report: figures, counts and protocol."""
        return {
            "perplexity": self.value,
            "nats_per_token": self.nats_per("token"),
            "nats_per_word": self.nats_per("word"),
            "nats_per_byte": self.nats_per("byte"),
            "bits_per_byte": self.bits_per_byte,
            "nll": self.total("nll"),
            **{name: int(self.total(name)) for name in ("tokens", "text_tokens", "words", "bytes")},
            "items": len(self.scores),
            "unscored": list(self.unscored),
            "truncated": self.truncated,
            "tokenisation": self.tokenisation,
            "protocol": self.protocol.model_dump(mode="json"),
        }


def nats_per(unit: Unit) -> Statistic:
    """Return the figure as a statistic of the scores, for intervals and comparisons."""
    if unit == "token":
        return NATS_PER_TOKEN

    def of_sums(sums: Floats) -> Floats:
        nll, tokens, text_tokens, units = np.moveaxis(sums, -1, 0)
        below = np.asarray(tokens * units)
        return np.asarray(np.divide(nll * text_tokens, below, out=np.zeros_like(below), where=below != 0))

    columns = ("nll", "tokens", "text_tokens", f"{unit}s")
    return Statistic(f"nats per {unit}", columns, of_sums, "lower", f"nats/{unit}", (0, math.inf))


def perplexity_per(unit: Unit) -> Statistic:
    """Return the perplexity by a unit: ``perplexity`` of tokens, ``word perplexity``, ``byte perplexity``."""
    return PERPLEXITY if unit == "token" else _exp_of(nats_per(unit), f"{unit} perplexity")


def perplexity(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Mapping[str, str],
    protocol: PerplexityProtocol,
    *,
    batch_size: int = 16,
) -> Perplexity:
    """Score documents under ``protocol``.

    Args:
        model: put in evaluation mode meanwhile.
        tokenizer: the model's.
        documents: id -> text, in order.
        protocol: how they are cut and scored.
        batch_size: windows at once; changes nothing but rounding.

    Raises:
        DataError: there is no document, or no token that could be predicted.
        ConfigError: the protocol does not fit the model.
    """
    if not documents:
        raise DataError("there is no text to measure perplexity on: its data set is empty")
    fitted = protocol.fitted(model)
    cut = _stream if fitted.mode == "stream" else _each
    items = cut(tokenizer, documents, fitted)
    scored = [item for item in items if any(w.scored for w in item.windows)]
    if not scored:
        raise DataError("no token of these texts can be predicted: they are empty, or one token without a begin token")
    examples = [_example(n, w) for n, item in enumerate(scored) for w in item.windows if w.scored]
    nll = np.zeros(len(scored))
    np.add.at(nll, [e.row for e in examples], nll_sums(model, examples, batch_size))
    scores = Scores.of(
        [item.id for item in scored],
        nll=nll,
        tokens=[sum(w.scored for w in item.windows) for item in scored],
        text_tokens=[item.text_tokens for item in scored],
        words=[item.words for item in scored],
        bytes=[item.bytes for item in scored],
    )
    return Perplexity(
        scores=scores,
        protocol=fitted,
        tokenisation=f"{tokenizer.vocab_size} ids, sha256 {tokenizer.fingerprint[:16]}",
        unscored=tuple(item.id for item in items if not any(w.scored for w in item.windows)),
        truncated=sum(item.truncated for item in items),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    ids: list[int]
    scored: int  # how many of the last tokens are predicted here


@dataclass(frozen=True, slots=True)
class _Item:
    id: str
    windows: list[_Window]
    text_tokens: int
    words: int
    bytes: int
    truncated: bool = False


def _windows(ids: Sequence[int], protocol: PerplexityProtocol) -> Iterator[tuple[_Window, int, int]]:
    """Cut ``ids`` into windows; with each, the range of tokens that it is the first to hold."""
    seen = 0
    for start in range(0, len(ids), protocol.stride):
        end = min(start + protocol.context, len(ids))
        fresh = end - seen
        # The first token of a window has nothing before it.
        yield _Window(list(ids[start:end]), fresh - 1 if fresh == end - start else fresh), seen, end
        seen = end
        if end == len(ids):
            return


def _specials(tokenizer: Tokenizer, protocol: PerplexityProtocol) -> tuple[list[int], list[int]]:
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return [begin] if protocol.begin else [], [tokenizer.eos_id] if protocol.end else []


def _each(tokenizer: Tokenizer, documents: Mapping[str, str], protocol: PerplexityProtocol) -> list[_Item]:
    """Every document alone; a long one in several windows, unless it is to be truncated."""
    head, tail = _specials(tokenizer, protocol)
    items = []
    for (name, text), body in zip(documents.items(), tokenizer.encode_many(list(documents.values())), strict=True):
        ids = [*head, *body, *tail]
        windows = [window for window, _, _ in _windows(ids, protocol)]
        cut = protocol.truncate and len(windows) > 1
        if cut:
            windows, ids = windows[:1], ids[: protocol.context]
            text = tokenizer.decode(ids[len(head) :])
        items.append(_Item(name, windows, len(ids) - len(head), len(text.split()), len(text.encode()), cut))
    return items


def _stream(tokenizer: Tokenizer, documents: Mapping[str, str], protocol: PerplexityProtocol) -> list[_Item]:
    """All documents as one text; every window is an item, to which the text belongs that it is the first to hold."""
    head, tail = _specials(tokenizer, protocol)
    whole = protocol.separator.join(documents.values())
    ids = [*head, *tokenizer.encode(whole), *tail]
    cut = list(_windows(ids, protocol))
    texts = _pieces(tokenizer, [ids[a:b] for _, a, b in cut])
    items: list[_Item] = []
    inside = False  # of a word, at the border of two windows
    for number, ((window, a, b), text) in enumerate(zip(cut, texts, strict=True)):
        words = len(text.split()) - (inside and text[:1].strip() != "")
        inside = text[-1:].strip() != "" if text else inside
        text_tokens = b - a - (len(head) if number == 0 else 0)
        item = _Item(f"window:{number}", [window], text_tokens, words, len(text.encode()))
        if not window.scored and items:  # a last token alone: its text counts, so it goes to the window before
            last = items.pop()
            sums = (last.text_tokens + text_tokens, last.words + words, last.bytes + item.bytes)
            item = _Item(last.id, last.windows, *sums)
        items.append(item)
    return items


def _pieces(tokenizer: Tokenizer, spans: Sequence[Sequence[int]]) -> list[str]:
    """Text of consecutive spans of tokens; a character whose bytes lie on both sides of a border goes to the later."""
    stream = TextStream(tokenizer)
    texts = ["".join(stream.push(token) for token in span) for span in spans]
    return [*texts[:-1], texts[-1] + stream.flush()] if texts else []


def _example(item: int, window: _Window) -> Example:
    target = np.zeros(len(window.ids), dtype=np.bool_)
    target[len(window.ids) - window.scored :] = True
    return Example(row=item, id=str(item), ids=np.asarray(window.ids, dtype=np.int32), target=target)
