"""A language model in Python: generate, chat, measure, save, export."""

from __future__ import annotations

import math
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from limbeck.command.flags import Flag, flags_of
from limbeck.config import build
from limbeck.data.chat import Message
from limbeck.decode.generate import Generation, OnText, generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.formats.load import Bundle, load_bundle, save_bundle
from limbeck.given import data_name
from limbeck.jobs.generation import chat_ids, prompt_ids
from limbeck.jobs.recipe import Display
from limbeck.jobs.source import device_of, dtype_of
from limbeck.results import JobResult, Metric
from limbeck.verbs.table import recipe

__all__ = ["LanguageModel", "job", "model_name", "nested"]


class LanguageModel:
    """A model with its tokenizer, as ``limbeck.load`` returns it.

    Attributes:
        bundle: decoder, tokenizer and generation defaults.
        name: the folder, run, Hub id or GGUF file that it was loaded from.
        adapter: the PEFT adapter beside it, or None.
        keep_codes: the quantized matrices of its GGUF file are held as codes.

    >>> import limbeck
    >>> model = limbeck.load("runs/tiny")
    >>> isinstance(model, limbeck.LanguageModel)
    True
    """

    def __init__(self, bundle: Bundle, name: str, adapter: str | None = None, keep_codes: bool = False) -> None:
        self.bundle, self.name, self.adapter, self.keep_codes = bundle, name, adapter, keep_codes
        self._loaded = self._state()

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        keep_codes: bool = False,
    ) -> LanguageModel:
        """Load a model; see ``limbeck.load``."""
        named = os.fspath(name)
        bundle = load_bundle(named, dtype_of(dtype), device_of(device), adapter=adapter, keep_codes=keep_codes)
        return cls(bundle, named, adapter, keep_codes)

    def generate(self, prompt: str | Sequence[str] = "", *, seed: int = 0, **decoding: Any) -> Any:
        """Return what the model writes after a prompt: a text, or a list of texts for a list of prompts.

        Args:
            prompt: one text or several.
            seed: of sampling.
            **decoding: such as ``max_new_tokens``, ``temperature``, ``top_p``, ``beams``, ``stop``. With ``samples`` or
                ``n_best`` above 1 each prompt gives a list of texts.

        Raises:
            DataError: a prompt leaves no room for new tokens.
            ConfigError: an unknown option, or options that exclude each other.
        """
        one = isinstance(prompt, str)
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        how = _decoding(decoding, seed)
        found = self._continue([prompt_ids(self.bundle.tokenizer, text) for text in texts], how)
        out = [[g.text for g in some] if how.outputs > 1 else some[0].text for some in found]
        return out[0] if one else out

    def stream(self, prompt: str = "", *, seed: int = 0, **decoding: Any) -> Iterator[str]:
        """Yield what the model writes after a prompt, piece by piece as it is written; options as in ``generate``."""
        how = _decoding(decoding, seed)
        if how.outputs > 1:
            raise ConfigError("several samples cannot be streamed together: use generate")
        yield from self._stream(prompt_ids(self.bundle.tokenizer, prompt), how)

    def chat(self, messages: str | Sequence[Mapping[str, str]], *, seed: int = 0, **decoding: Any) -> str:
        """Return the model's answer to a conversation, laid out by its chat template.

        Args:
            messages: one question, or turns such as ``{"role": "user", "content": "..."}``.
            seed: of sampling.
            **decoding: as in ``generate``.

        Raises:
            ConfigError: the model has no chat template.
            DataError: a turn without role or content.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        read = [Message.read(turn, f"message {i}") for i, turn in enumerate(turns)]
        ids = chat_ids(self.bundle.tokenizer, read, self.name)
        return self._continue([ids], _decoding(decoding, seed))[0][0].text

    def perplexity(self, data: Any, protocol: str | None = None, **options: Any) -> Metric:
        """Return the perplexity with its interval and its protocol.

        Args:
            data: a text, a path, ``toy:NAME``, or rows with a field ``text``.
            protocol: a named protocol such as ``wikitext2-512``; None: each document alone, perplexity a token.
            **options: of ``evaluate``.
        """
        if isinstance(data, str) and not _names_data(data):
            data = [data]
        given = {"probes": "off", "measuring": {"generate": False}, **options}
        values = {**self.given(), "data": data_name(data), **given}
        found = job("evaluate", {**values, "task": {"kind": "text", "protocol": protocol}}).metrics
        name = next((n for n in found if n.startswith("perplexity")), None)
        if name is not None:
            return found[name]
        nats = found["nats per token"]
        return Metric(
            "perplexity per token", math.exp(nats.value),
            None if nats.low is None else math.exp(nats.low), None if nats.high is None else math.exp(nats.high),
            nats.level, "", "lower", nats.items, nats.protocol,
        )  # fmt: skip

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model to a folder and return it; what the Hugging Face layout can hold is written in that."""
        path, b = Path(folder), self.bundle
        save_bundle(b.model, b.tokenizer, path, generation=b.generation, deployed_specs=b.deployed_specs)
        return path

    def export(self, out: str | os.PathLike[str], to: str = "huggingface", **options: Any) -> JobResult:
        """Write the model for other programs, load it back and compare the logits.

        Args:
            out: a folder, or for GGUF a file.
            to: ``huggingface``, ``peft`` or ``gguf``.
            **options: of the verb ``export``, such as ``type="q8_0"`` for GGUF.
        """
        given = self.given()
        if to != "gguf":  # other layouts hold floats
            given.pop("keep_codes", None)
        return job("export", {**given, "to": to, "out": os.fspath(out), **options})

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return self.bundle.model.count_parameters()

    def __repr__(self) -> str:
        c = self.bundle.model.config
        return f"<LanguageModel {self.name}: {self.parameters:,} parameters, {c.layers} layers, {c.context} tokens>"

    def _continue(
        self, prompts: list[list[int]], how: Decoding, on_text: OnText | None = None
    ) -> list[list[Generation]]:
        b = self.bundle
        return generate(b.model, b.tokenizer, prompts, how, on_text=on_text)

    def _stream(self, ids: list[int], how: Decoding) -> Iterator[str]:
        """Run the generation in a thread of its own; a caller who stops reading stops it at its next piece."""
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        stopped = threading.Event()

        def on_text(prompt: int, sample: int, text: str) -> None:
            if stopped.is_set():
                raise _StoppedReading
            pieces.put(text)

        def work() -> None:
            try:
                self._continue([ids], how, on_text)
                pieces.put(None)
            except BaseException as error:  # handed to the reader
                pieces.put(error)

        thread = threading.Thread(target=work, daemon=True, name="limbeck-stream")
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stopped.set()
            thread.join()

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Which tensors the model has, and how often each was written to."""
        return tuple((id(p), p._version) for p in (*self.bundle.model.parameters(), *self.bundle.model.buffers()))

    def given(self) -> dict[str, Any]:
        """Return the options by which a verb opens this model as it was opened here."""
        if self._state() != self._loaded:
            return {"model": self.copy_name()}  # which holds its codes and its adapter
        beside = {} if self.adapter is None else {"adapter": self.adapter}
        return {"model": self.name, **beside, **({"keep_codes": True} if self.keep_codes else {})}

    def saved_name(self) -> str:
        """Return one name that stands for this model as it is now.

        It is its own, or that of a copy where its weights were changed or an adapter is beside them.
        """
        return self.name if self.adapter is None and self._state() == self._loaded else self.copy_name()

    def copy_name(self) -> str:
        """Return the folder of a copy, which is removed with this object."""
        folder = tempfile.mkdtemp(prefix="limbeck-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return str(self.save(Path(folder) / "model"))


class _StoppedReading(Exception):  # noqa: N818 - it stops a generation, nothing is wrong
    pass


def model_name(model: str | os.PathLike[str] | LanguageModel | JobResult) -> str:
    """Return the name of a model given as a name, as a loaded model, or as the result of the job that made it.

    Raises:
        ConfigError: a result without a folder, or an object of another kind.
    """
    if isinstance(model, LanguageModel):
        return model.saved_name()
    if isinstance(model, JobResult):
        if model.path is None:
            raise ConfigError(f"this '{model.verb}' wrote no folder: give it out, or name a model or a run")
        return str(model.path)
    try:
        return os.fspath(model)
    except TypeError:
        kind = type(model).__name__
        raise ConfigError(
            f"a model of type {kind} cannot be opened: give a name, a path, a loaded model or a result"
        ) from None


def _decoding(options: Mapping[str, Any], seed: int) -> Decoding:
    return build(Decoding, options, "the options of decoding").seeded(seed)


def _names_data(text: str) -> bool:
    """Is this the name of data rather than a text?"""
    if text.startswith("toy:"):
        return True
    try:
        return "\n" not in text and len(text) < 4096 and Path(text).expanduser().exists()
    except OSError:
        return False


def job(verb: str, values: Mapping[str, Any], display: Display | None = None) -> JobResult:
    """Run any verb: what ``limbeck VERB`` does, with values in place of flags.

    Args:
        verb: such as ``score``.
        values: options by the names of the verb's config, nested, or by the short names of its flags.
        display: where progress is shown; None: a progress bar in a terminal or a notebook, and nothing else.

    Raises:
        KeyError: no such verb.
        LimbeckError: one sentence that says what is wrong, where, and what to do.

    >>> import limbeck
    >>> limbeck.job("info", {"model": "runs/tiny"}).verb
    'info'
    """
    given = {key: value for key, value in values.items() if value is not None}
    made = build(recipe(verb), nested(verb, given), f"the options of {verb}")
    made.claim()
    return JobResult(verb, made.run(display or Display.bars()).values, LanguageModel.load, made.out)


@cache
def _flags(verb: str) -> dict[str, Flag]:
    """Return the nested flags of a verb by their short names, as Python spells them."""
    flags = flags_of(recipe(verb).model_json_schema())
    return {f.short.replace("-", "_"): f for f in flags if f.short is not None and f.member is None}


def nested(verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with those given by the short name of a nested option in their place."""
    own, out = recipe(verb).model_fields, dict[str, Any]()
    for key, value in values.items():
        flag = None if key in own else _flags(verb).get(key)
        at = out
        for step in () if flag is None else flag.path[:-1]:
            held = at.get(step)
            at[step] = dict(held) if isinstance(held, Mapping) else {}
            at = at[step]
        last = key if flag is None else flag.path[-1]
        held = at.get(last)
        at[last] = {**value, **held} if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return out
