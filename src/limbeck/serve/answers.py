"""Bodies of answers, whole and streamed, as OpenAI's API has them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.data.token_bytes import TokenBytes
from limbeck.serve.sequence import Ended, Event, TextPiece, TokenScore

__all__ = ["GrowingAnswers", "Usage"]


@dataclass(slots=True)
class Usage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: of its prompts, each counted once.
        completion_tokens: generated, end tokens included.
    """

    prompt_tokens: int
    completion_tokens: int = 0

    def plain(self) -> dict[str, int]:
        """Return the event as it is sent."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total
        }  # fmt: skip


@dataclass(slots=True)
class GrowingAnswers:
    """The answers to one request, as they grow.

    Attributes:
        chat: a conversation's, not a prompt's.
        model: as it is called.
        count: number of answers.
        usage: tokens so far.
        scored: log-probabilities are wanted.
        tops: the likeliest tokens are wanted too.
        spell: the bytes of tokens.
        with_usage: a stream ends with the usage.
    """

    chat: bool
    model: str
    count: int
    usage: Usage
    scored: bool
    tops: bool
    spell: TokenBytes
    with_usage: bool = False
    id: str = field(init=False)
    created: int = field(init=False)
    _events: list[list[Event]] = field(init=False)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self._events = [[] for _ in range(self.count)]

    def take(self, index: int, event: Event) -> None:
        """Keep an event of one answer for ``whole``."""
        self.count_tokens(event)
        self._events[index].append(event)

    def count_tokens(self, event: Event) -> None:
        """Add the tokens of an answer that ended to the usage."""
        if isinstance(event, Ended):
            self.usage.completion_tokens += event.tokens

    def whole(self) -> dict[str, Any]:
        """Return the whole answer, once every one has ended."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(index, events) for index, events in enumerate(self._events)]
        return {**self._head(kind), "choices": choices, "usage": self.usage.plain()}

    def chunk(self, index: int, event: Event) -> dict[str, Any]:
        """Return what is streamed of an event."""
        if isinstance(event, TextPiece):
            return self._chunk(self._part(index, event.text, event.tokens, None))
        return self._chunk(self._part(index, "", (), event.reason))

    def first_chunks(self) -> list[dict[str, Any]]:
        """Return what a stream begins with: the role of each answer of a conversation."""
        if not self.chat:
            return []
        told = {"role": "assistant", "content": ""}
        return [
            self._chunk({"index": i, "delta": told, "logprobs": None, "finish_reason": None}) for i in range(self.count)
        ]

    def last_chunks(self) -> list[dict[str, Any]]:
        """Return what a stream ends with: the usage, where it is wanted."""
        if not self.with_usage:
            return []
        return [{**self._head(self._streamed), "choices": [], "usage": self.usage.plain()}]

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        told = {**self._head(self._streamed), "choices": [choice]}
        return {**told, "usage": None} if self.with_usage else told

    def _choice(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        text = "".join(e.text for e in events if isinstance(e, TextPiece))
        tokens = [one for e in events if isinstance(e, TextPiece) for one in e.tokens]
        reason = next(e.reason for e in events if isinstance(e, Ended))
        shared = {"logprobs": self._logprobs(tokens), "finish_reason": reason}
        if self.chat:
            return {"index": index, "message": {"role": "assistant", "content": text, "refusal": None}, **shared}
        return {"index": index, "text": text, **shared}

    def _part(self, index: int, text: str, tokens: Sequence[TokenScore], reason: str | None) -> dict[str, Any]:
        shared = {"logprobs": self._logprobs(tokens) if tokens else None, "finish_reason": reason}
        if self.chat:
            return {"index": index, "delta": {"content": text} if reason is None else {}, **shared}
        return {"index": index, "text": text, **shared}

    def _logprobs(self, tokens: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.scored:
            return None
        if self.chat:
            return {"content": [self._chat_score(one) for one in tokens], "refusal": None}
        text = self.spell.text
        tops = [None if t.log_prob is None else self._by_text(t) for t in tokens]
        return {
            "tokens": [text(t.id) for t in tokens],
            "token_logprobs": [t.log_prob for t in tokens],
            "top_logprobs": tops if self.tops else None,
            "text_offset": [t.offset for t in tokens],
        }

    def _by_text(self, one: TokenScore) -> dict[str, float | None]:
        """Return the likeliest tokens, and the one that stands there; of two with one text the likelier."""
        found: dict[str, float | None] = {}
        for token, log_prob in (*one.top, (one.id, one.log_prob)):
            found.setdefault(self.spell.text(token), log_prob)
        return found

    def _chat_score(self, one: TokenScore) -> dict[str, Any]:
        return {**self._named(one.id, one.log_prob), "top_logprobs": [self._named(i, v) for i, v in one.top]}

    def _named(self, token: int, log_prob: float | None) -> dict[str, Any]:
        return {"token": self.spell.text(token), "logprob": log_prob, "bytes": list(self.spell(token))}
