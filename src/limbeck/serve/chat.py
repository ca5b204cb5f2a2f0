"""``limbeck chat``: a conversation with a model in the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, model_validator
from rich.text import Text

from limbeck.data.chat import ChatTemplate, Message
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle
from limbeck.jobs.model_source import NAMES
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.jobs.source import device_of, dtype_of
from limbeck.kernels import native
from limbeck.serve.client import ChatServer
from limbeck.serve.conversation import HELP, Answerer, Conversation, TooLongError, terminal_reader
from limbeck.serve.engine import Engine
from limbeck.serve.sequence import Ended, Event, ServedSequence, TextPiece

__all__ = ["Chat", "LocalAnswerer", "RemoteAnswerer"]

_SENT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
_SERVER: dict[str, JsonValue] = {"section": "server"}


class Chat(Recipe):
    """Talk with a model in the terminal, or with a server; answers appear as they are written.

    Lines that begin with a stroke are commands: /help, /reset, /system, /save, /exit. Ctrl-C stops an answer and not
    the program; lines may also come from a pipe.
    """

    verb: ClassVar[str] = "chat"
    summary: ClassVar[str] = "talk with a model, or with a server, in the terminal"
    files: ClassVar[tuple[str, ...] | None] = ("chat.json",)

    model: str | None = Field(
        None, description=f"{NAMES}; with url: its name at the server", json_schema_extra={"positional": True}
    )
    adapter: str | None = Field(None, description="PEFT adapter to load with it: a folder or a Hub id")
    url: str | None = Field(
        None, description="talk with the server at this address, e.g. http://127.0.0.1:8000/v1",
        json_schema_extra=_SERVER,
    )  # fmt: skip
    key_variable: str = Field(
        "LIMBECK_API_KEY", description="environment variable that holds the server's key", json_schema_extra=_SERVER
    )
    system: str = Field("", description="what the system says first", json_schema_extra={"verbatim": True})
    chat_template: str | None = Field(
        None, json_schema_extra={"verbatim": True},
        description="layout of conversations: auto, turns, bare, a .jinja file or Jinja text; none: the model's own",
    )  # fmt: skip
    decoding: Decoding = Field(default_factory=Decoding, description="how new tokens are chosen")

    @model_validator(mode="after")
    def _agrees(self) -> Chat:
        if self.model is None and self.url is None:
            raise ValueError("name a model, or the address of a server with 'url'")
        if self.url is not None and (self.adapter is not None or self.chat_template is not None):
            raise ValueError("a server has its own adapter and chat template: leave them out with 'url'")
        if self.decoding.outputs > 1 or self.decoding.beams > 1:
            raise ValueError("a conversation has one answer a turn: leave beams and samples out")
        if self.decoding.truncate_prompts or self.decoding.beyond_context:
            raise ValueError("a conversation that is too long forgets its oldest turns: leave truncate_prompts out")
        return self

    def run(self, session: Display) -> Report:
        """Talk until the user leaves.

        Raises:
            LimbeckError: the model cannot be loaded, or the server not be reached.
        """
        note = _noting(session)
        answerer, who = self._answerer()
        note(f"{who}; {HELP}")
        conversation = Conversation(answerer, session.text, note, terminal_reader(), self.system)
        conversation.run()
        values = {"verb": self.verb, "model": who, "messages": [m.plain() for m in conversation.messages]}
        report = Report(values)
        if self.out is not None:
            report.write(Path(self.out) / "chat.json")
        return report

    def _answerer(self) -> tuple[Answerer, str]:
        decoding = self.decoding.seeded(self.seed)
        if self.url is not None:
            server = ChatServer(self.url, self.model, self._key(self.url))
            return RemoteAnswerer(server, decoding), f"{server.model} at {server.url}"
        assert self.model is not None
        bundle = load_bundle(self.model, dtype_of(self.dtype), device_of(self.device), adapter=self.adapter)
        return LocalAnswerer(bundle, self.model, decoding, self.chat_template), self.model

    def _key(self, url: str) -> str:
        """Return the server's key, which is sent to no other machine without encryption.

        Raises:
            ConfigError: the address is not encrypted, or the key is no key's text.
        """
        key = os.environ.get(self.key_variable, "").strip()
        parts = urlsplit(url)
        if key and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(
                f"{url} is not encrypted, and the key in {self.key_variable} would be readable: use https"
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"the key in {self.key_variable} has characters that no key has: copy it again")
        return key


class LocalAnswerer:
    """A loaded model; it is asked in the thread that reads its answers."""

    def __init__(self, bundle: Bundle, name: str, decoding: Decoding, template: str | None = None) -> None:
        """Take a model.

        Args:
            bundle: the model.
            name: how messages call it.
            decoding: how tokens are chosen.
            template: layout of conversations, as ``ChatTemplate.named`` reads it; None: the model's own.

        Raises:
            ConfigError: it cannot generate text, or has no chat template and none is given.
        """
        if bundle.model.config.classes is not None:
            raise ConfigError(f"{name} has a classification head: it cannot generate text")
        self._template = _template(bundle, name, template)
        self._bundle, self._decoding = bundle, decoding
        if bundle.model.device.type == "cpu":
            native.load()  # compiled now, not within the first answer

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the pieces of the next answer.

        Raises:
            TooLongError: the conversation and the new tokens are more than the context.
            LimbeckError: the template refuses the conversation.
        """
        model, tokenizer = self._bundle.model, self._bundle.tokenizer
        prompt, new = self._template.prompt_ids(list(messages)), self._decoding.max_new_tokens
        if len(prompt) + new > model.config.context:
            raise TooLongError(
                f"the conversation has {len(prompt)} tokens and {new} new ones are wanted, more than the model's "
                f"context of {model.config.context}: /reset, or lower max_new_tokens"
            )
        heard: list[Event] = []
        sequence = ServedSequence(prompt, self._decoding, tokenizer, heard.append, new_tokens=new)
        engine = Engine(model, tokenizer, rows=1, capacity=len(prompt) + new, cache=self._decoding.kv)
        engine.submit([sequence])
        while not engine.idle:
            engine.step()
            for event in heard:
                if isinstance(event, TextPiece):
                    yield event.text
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
            heard.clear()


class RemoteAnswerer:
    """A server, asked with what is set of the decoding."""

    def __init__(self, server: ChatServer, decoding: Decoding) -> None:
        fresh = Decoding()
        self._server = server
        self._options: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
        for name in _SENT:
            value = getattr(decoding, name)
            if value != getattr(fresh, name):
                self._options[name] = list(value) if isinstance(value, tuple) else value

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the pieces of the next answer; as ``ChatServer.answer``."""
        return self._server.answer(messages, self._options)


def _noting(session: Display) -> Any:
    return lambda line: session.say(Text(line, style="dim"))


def _template(bundle: Bundle, name: str, template: str | None) -> ChatTemplate:
    tokenizer = bundle.tokenizer
    if template is not None:
        return ChatTemplate.named(template, tokenizer)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{name} has no chat template: train it on task instructions, or name a layout with chat_template (turns)"
        )
    return ChatTemplate(tokenizer.chat_template, tokenizer)
