"""What is served: a loaded model, its limits, and how a request becomes sequences of the engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from limbeck.data.chat import ChatTemplate
from limbeck.data.token_bytes import TokenBytes
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import occurrences
from limbeck.errors import LimbeckError
from limbeck.jobs.generation import prompt_ids
from limbeck.model.cache import KVKind
from limbeck.serve.answers import GrowingAnswers, Usage
from limbeck.serve.bodies import ChatBody, CompletionBody
from limbeck.serve.engine import Engine
from limbeck.serve.errors import APIError, api_error
from limbeck.serve.sequence import Event, ServedSequence

__all__ = ["Emit", "PreparedRequest", "Service"]

Emit = Callable[[int, Event], None]
"""Receives the number of an answer and what happened to it; called in the engine's thread."""

_COMPLETION_TOKENS = 16  # the API's default


@dataclass(slots=True)
class PreparedRequest:
    """A request that may be submitted: its sequences, one an answer, and the answers to fill."""

    sequences: list[ServedSequence]
    answers: GrowingAnswers


@dataclass(slots=True)
class Service:
    """One model behind the API.

    Attributes:
        engine: decodes.
        tokenizer: of the model.
        name: as clients call it.
        template: lays out conversations; None: the model has none.
        cache: what the engine's pool keeps keys and values in.
        key: bearer that clients must send; empty: none.
        hosts: host names under which clients may call where there is no key, so that no page that a browser shows can
            reach the server by a name of its own; empty: any.
        body_bytes: largest body of a request.
        body_seconds: longest time that a body may take to arrive.
        stopping: nothing new is taken.
    """

    engine: Engine
    tokenizer: Tokenizer
    name: str
    template: ChatTemplate | None
    cache: KVKind = "model"
    key: str = field(default="", repr=False)
    hosts: frozenset[str] = frozenset()
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    stopping: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _spell: TokenBytes = field(init=False)

    def __post_init__(self) -> None:
        self._spell = TokenBytes(self.tokenizer)

    def completion(self, body: CompletionBody, emit: Emit) -> PreparedRequest:
        """Prepare a request for completions.

        Raises:
            APIError: another model, an empty or unknown prompt, or one that does not fit.
        """
        self._check_model(body.model)
        prompts = self._prompts(body)
        echoes = [p if isinstance(p, str) else self.tokenizer.decode(p) for p in body.prompts]
        seed, before = secrets.randbits(63), occurrences(prompts)
        sequences: list[ServedSequence] = []
        for prompt, text, occurrence in zip(prompts, echoes, before, strict=True):
            new = self._room(prompt, body.max_tokens, _COMPLETION_TOKENS, "prompt")
            decoding = body.decoding(new, seed, self.cache)
            for sample in range(body.choices):
                sequences.append(
                    ServedSequence(
                        prompt, decoding, self.tokenizer, _numbered(emit, len(sequences)), new_tokens=new,
                        occurrence=occurrence, sample=sample, top=body.logprobs, echo=text if body.echo else None,
                        spell=self._spell,
                    )
                )  # fmt: skip
        tokens = sum(map(len, prompts))
        return self._prepared(body, sequences, tokens, body.logprobs is not None, bool(body.logprobs))

    def chat(self, body: ChatBody, emit: Emit) -> PreparedRequest:
        """Prepare a request for the next answer of a conversation.

        Raises:
            APIError: another model, no chat template, a conversation that it refuses, or one that does not fit.
        """
        self._check_model(body.model)
        if self.template is None:
            raise APIError(
                400, f"{self.name} has no chat template: ask for completions, or start the server with one",
                param="messages",
            )  # fmt: skip
        try:
            prompt = self.template.prompt_ids(body.turns)
        except LimbeckError as error:
            raise APIError(400, str(error), param="messages") from None
        new = self._room(prompt, body.limit, self.engine.capacity, "messages")
        decoding = body.decoding(new, secrets.randbits(63), self.cache)
        top = (body.top_logprobs or 0) if body.logprobs else None
        sequences = [
            ServedSequence(
                prompt, decoding, self.tokenizer, _numbered(emit, i), new_tokens=new, sample=i, top=top,
                spell=self._spell,
            )
            for i in range(body.choices)
        ]  # fmt: skip
        return self._prepared(body, sequences, len(prompt), top is not None, bool(top), chat=True)

    def submit(self, prepared: PreparedRequest) -> None:
        """Hand a request to the engine.

        Raises:
            APIError: the queue is full (429), could never hold so many answers (400), or the server stops (503).
        """
        most, count = self.engine.pool.rows + self.engine.queue, len(prepared.sequences)
        if count > most:
            raise APIError(400, f"{count} answers at once are more than this server ever holds ({most})", param="n")
        try:
            self.engine.submit(prepared.sequences)
        except LimbeckError as error:
            raise api_error(error) from None

    def _prepared(
        self,
        body: CompletionBody | ChatBody,
        sequences: list[ServedSequence],
        tokens: int,
        scored: bool,
        tops: bool,
        chat: bool = False,
    ) -> PreparedRequest:
        with_usage = bool(body.stream and body.stream_options is not None and body.stream_options.include_usage)
        answers = GrowingAnswers(
            chat, self.name, len(sequences), Usage(tokens), scored, tops, self._spell, with_usage=with_usage
        )
        return PreparedRequest(sequences, answers)

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise APIError(
                404, f"the model '{name[:100]}' does not exist here: ask for '{self.name}'", param="model",
                code="model_not_found",
            )  # fmt: skip

    def _prompts(self, body: CompletionBody) -> list[list[int]]:
        out, rows = [], self.engine.model.config.vocab_size
        for prompt in body.prompts:
            ids = prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
            if not ids:
                raise APIError(400, "a prompt of token ids is empty: begin it with the begin token", param="prompt")
            if max(ids) >= rows:
                raise APIError(400, f"token id {max(ids)} is none of the model's {rows}", param="prompt")
            out.append(ids)
        if not out:
            raise APIError(400, "'prompt' holds no prompt", param="prompt")
        return out

    def _room(self, prompt: Sequence[int], wanted: int | None, default: int, param: str) -> int:
        """Most tokens to generate behind a prompt."""
        most, used = self.engine.capacity, len(prompt)
        new = min(default, max(1, most - used)) if wanted is None else wanted
        if used + new > most:
            raise APIError(
                400,
                f"the context holds {most} tokens, but {used} of the {param} and {new} of the answer were asked for: "
                "shorten it, or ask for fewer",
                param=param,
                code="context_length_exceeded",
            )
        return new


def _numbered(emit: Emit, index: int) -> Callable[[Event], None]:
    return lambda event: emit(index, event)
