"""``limbeck serve``: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from rich.text import Text

from limbeck.data.chat import ChatTemplate
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle
from limbeck.jobs.model_source import NAMES, ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.kernels import native
from limbeck.model.cache import KVKind

__all__ = ["KEY", "LOOPBACK", "Serve"]

KEY = "LIMBECK_API_KEY"
"""Environment variable that holds the key of a server."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine that no other reaches."""

_DEFAULT_CONTEXT = 2048
_LEAST_KEY = 8
_SERVER: dict[str, Any] = {"section": "server"}


class Serve(ModelSource, Recipe):
    """Serve a model at /v1/models, /v1/completions and /v1/chat/completions, as OpenAI's API has them.

    Requests are decoded together: they join and leave the batch between two tokens. The server ends at Ctrl-C or
    SIGTERM, after the answers under way.
    """

    verb: ClassVar[str] = "serve"
    summary: ClassVar[str] = "serve a model behind an OpenAI-compatible endpoint"
    files: ClassVar[tuple[str, ...] | None] = ("serve.json",)

    host: str = Field(
        "127.0.0.1", description="address to listen at; one that other machines reach needs a key",
        json_schema_extra=_SERVER,
    )  # fmt: skip
    port: int = Field(8000, ge=0, le=65535, description="port; 0: any that is free", json_schema_extra=_SERVER)
    name: str | None = Field(
        None, description="what clients call the model; none: the last part of its name", json_schema_extra=_SERVER
    )
    api_key_file: str | None = Field(
        None, description=f"file whose text is the bearer key; none: the variable {KEY}", json_schema_extra=_SERVER
    )
    rows: int = Field(8, ge=1, le=256, description="answers decoded together", json_schema_extra=_SERVER)
    context: int | None = Field(
        None, ge=2, json_schema_extra=_SERVER,
        description=f"most tokens of a prompt and its answer; none: the model's, at most {_DEFAULT_CONTEXT}",
    )  # fmt: skip
    queue: int = Field(64, ge=0, description="answers that may wait; beyond: status 429", json_schema_extra=_SERVER)
    cache: KVKind = Field(
        "model", description="keep keys and values in the model's dtype, or rounded to int8 or int4",
        json_schema_extra=_SERVER,
    )  # fmt: skip
    body_bytes: int = Field(
        1 << 20, ge=1024, description="largest body of a request, in bytes; beyond: status 413",
        json_schema_extra=_SERVER,
    )  # fmt: skip
    stop_seconds: float = Field(
        30.0, ge=0, description="time that running answers have to finish at the end", json_schema_extra=_SERVER
    )
    chat_template: str | None = Field(
        None, json_schema_extra={**_SERVER, "verbatim": True},
        description="layout of conversations: auto, turns, bare, a .jinja file or Jinja text; none: the model's own",
    )  # fmt: skip
    draft: str | None = Field(
        None, description=f"small model of the same tokenizer that speeds a greedy request that is alone: {NAMES}",
        json_schema_extra=_SERVER,
    )  # fmt: skip
    proposals: int = Field(
        4, ge=1, le=15, description="most tokens that the draft proposes at once", json_schema_extra=_SERVER
    )

    def run(self, session: Display) -> Report:
        """Serve until a signal comes.

        Raises:
            ConfigError: the extra is not installed, no key where one is needed, or an address that cannot be had.
            LimbeckError: the model cannot be loaded.
        """
        try:
            from limbeck.serve.server import listen, serve
            from limbeck.serve.service import Service
        except ImportError as error:
            raise ConfigError(f'serving needs {error.name}: pip install "limbeck[serve]"') from None
        from limbeck.serve.engine import Engine

        key = self._key()
        listening = listen(self.host, self.port)
        try:
            bundle = self.load(self.dtype, self.device)
            if bundle.model.config.classes is not None:
                raise ConfigError(f"{self.model} has a classification head: it cannot generate text")
            if bundle.model.device.type == "cpu":
                native.load()  # compiled now, not within the first answer
            draft = None if self.draft is None else self.load_draft(self.draft, bundle, self.dtype, self.device)
            engine = Engine(
                bundle.model, bundle.tokenizer, rows=self.rows, capacity=self._capacity(bundle), queue=self.queue,
                cache=self.cache, draft=draft, proposals=self.proposals,
            )  # fmt: skip
            service = Service(
                engine, bundle.tokenizer, self.name or _short(self.model), self._template(bundle), self.cache, key,
                frozenset() if key else LOOPBACK | {self.host}, self.body_bytes,
            )  # fmt: skip
            host, port = listening.getsockname()[:2]
            address = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
            told = [
                ("model", f"{service.name} ({self.model}), {bundle.model.count_parameters():,} parameters"),
                ("address", f"{address} ({'with' if key else 'without'} a key)"),
                ("at once", f"{self.rows} answers of at most {engine.capacity:,} tokens; {self.queue} more may wait"),
                ("cache pool", f"{engine.pool.bytes / 1e6:,.1f} MB"),
                ("conversations", "by the chat template" if service.template else "none: there is no chat template"),
            ]
            if self.draft is not None:
                told.append(("draft", f"{self.draft}, for a greedy request that is alone"))
            session.say(facts("serving", told), Text("Ctrl-C stops it"))
            started = time.monotonic()
            engine.start()
            serve(service, listening, stop_seconds=self.stop_seconds, say=lambda line: session.say(Text(line)))
        finally:
            listening.close()
        values = {
            "verb": self.verb, "model": self.model, "name": service.name, "address": address,
            "seconds": time.monotonic() - started, **engine.counted(),
        }  # fmt: skip
        done = f"served {values['answers']:,} answers, {values['tokens']:,} tokens"
        report = Report(values, (Text(done, style="dim"),))
        if self.out is not None:
            report.write(Path(self.out) / "serve.json")
        return report

    def _key(self) -> str:
        """Return the key that clients must send; empty where none is needed.

        Raises:
            ConfigError: there is none and others reach the address, or it is too short or no key's text.
        """
        if self.api_key_file is not None:
            try:
                key = Path(self.api_key_file).expanduser().read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise ConfigError(f"the key file {self.api_key_file} cannot be read: {error}") from None
            where = self.api_key_file
        else:
            key, where = os.environ.get(KEY, "").strip(), f"the variable {KEY}"
        if not key:
            if self.api_key_file is not None:
                raise ConfigError(f"the key file {where} is empty: write a key into it")
            if self.host not in LOOPBACK:
                raise ConfigError(
                    f"{self.host} can be reached from other machines: set a key in {KEY} or with --api-key-file"
                )
            return ""
        if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"the key in {where} must be {_LEAST_KEY} or more ASCII characters without spaces")
        return key

    def _capacity(self, bundle: Bundle) -> int:
        most = bundle.model.config.context
        if self.context is not None and self.context > most:
            raise ConfigError(f"context {self.context} is more than the model's {most}: lower it")
        return self.context or min(most, _DEFAULT_CONTEXT)

    def _template(self, bundle: Bundle) -> ChatTemplate | None:
        if self.chat_template is not None:
            return ChatTemplate.named(self.chat_template, bundle.tokenizer)
        own = bundle.tokenizer.chat_template
        return None if own is None else ChatTemplate(own, bundle.tokenizer)


def _short(name: str) -> str:
    """Name a model as clients call it: a folder's name, that of a run, or the end of a Hub id."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name.rpartition("/")[2]
