"""Continuation of prompts, streamed as it is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.text import Text as RichText

from limbeck.data.chat import Message
from limbeck.data.readers import Dialect, read
from limbeck.decode.generate import Generation, OnText, fit_prompts, generate
from limbeck.decode.settings import Decoding
from limbeck.decode.speculative import speculate
from limbeck.errors import ConfigError, Interrupted
from limbeck.formats.load import Bundle
from limbeck.jobs.generation import chat_ids, prompt_ids
from limbeck.jobs.model_source import NAMES, ModelSource
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.kernels import native
from limbeck.storage import plain, write_json

__all__ = ["PromptingOptions", "prompting"]


class PromptingOptions(ModelSource, Recipe):
    """A model, prompts, and how new tokens are chosen."""

    prompt: str = Field(
        "", description="text to continue; empty: from the begin token", json_schema_extra={"positional": True}
    )
    prompts: str | None = Field(None, description="file of prompts instead: a path or toy:NAME")
    field: str = Field("text", description="field of the prompts' rows that is the prompt")
    dialect: Dialect = Field(default_factory=Dialect, description="delimiter and quotes of a file that is a table")
    limit: int | None = Field(None, ge=1, description="only the first rows of the file")
    batch_size: int = Field(16, ge=1, description="sequences decoded together")
    chat: bool = Field(False, description="a prompt is a user's turn, laid out by the model's chat template")
    system: str = Field(
        "", description="what the system says before the prompt, with chat", json_schema_extra={"verbatim": True}
    )
    draft: str | None = Field(None, description=f"small model of the same tokenizer that proposes tokens: {NAMES}")
    proposals: int = Field(4, ge=1, le=15, description="most tokens that the draft proposes at once")
    decoding: Decoding = Field(default_factory=Decoding, description="how new tokens are chosen")

    @model_validator(mode="after")
    def _agrees(self) -> PromptingOptions:
        if self.system and not self.chat:
            raise ValueError("system needs chat: without it a prompt is continued as it is")
        if self.draft is None and "proposals" in self.model_fields_set:
            raise ValueError("proposals needs a draft that makes them")
        if self.draft is not None and self.decoding.beams > 1:
            raise ValueError("a draft proposes for sampling and greedy decoding, not for beams: set one of them")
        return self


def prompting(options: PromptingOptions, display: Display) -> Report:
    """Generate; one prompt is streamed, several are printed when done.

    Raises:
        LimbeckError: the model cannot be loaded, or a prompt does not fit.
    """
    bundle = options.load(options.dtype, options.device)
    names, texts = _texts(options)
    prompts = _prompts(options, bundle, texts)
    decoding = options.decoding.seeded(options.seed)
    stream = len(prompts) == 1 and options.decoding.outputs == 1
    if stream:
        fit_prompts(bundle.model, prompts, options.decoding, bundle.tokenizer)  # refuse before anything is shown
        display.write(f"{texts[0]}\n" if options.chat else texts[0])
    draft = None if options.draft is None else options.load_draft(options.draft, bundle, options.dtype, options.device)
    if bundle.model.device.type == "cpu":
        native.load()  # compiling the kernels, at their first use, is no part of the time of decoding
    on_text, worth = _writer(display) if stream else None, None
    started, kept = time.perf_counter(), list[list[Generation]]()
    stopped = False
    if draft is None:
        try:
            generate(
                bundle.model, bundle.tokenizer, prompts, decoding, batch_size=options.batch_size,
                on_text=on_text, kept=kept,
            )  # fmt: skip
        except KeyboardInterrupt:
            stopped = True
        out = kept
    else:
        out, worth = speculate(
            bundle.model, draft, bundle.tokenizer, prompts, decoding, proposals=options.proposals,
            on_text=on_text,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    if stream:
        display.write("\n")
    tokens = sum(g.tokens for some in out for g in some)
    values: dict[str, Any] = {
        "verb": options.verb,
        "model": options.model,
        "decoding": decoding.model_dump(mode="json"),
        "generations": [_plain(n, t, g) for n, t, some in zip(names, texts, out, strict=True) for g in some],
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
    }
    if worth is not None:
        values["speculation"] = {**asdict(worth), "acceptance": worth.acceptance}
    values |= {"interrupted": True} if stopped else {}
    if options.out is not None:
        write_json(Path(options.out) / "generations.json", values)
    if not stream:
        for name, text, some in zip(names, texts, out, strict=True):
            display.write("".join(_shown(name, f"{text}\n" if options.chat else text, g) for g in some))
    rate = f"{tokens} tokens in {seconds:.2f} s"
    if worth is not None and worth.acceptance is not None:
        rate += f"; {worth.acceptance:.1%} of {worth.proposed} proposals kept, {worth.rounds} forwards of the model"
    if stopped:
        count, wanted = sum(map(len, out)), len(prompts) * options.decoding.outputs
        place = f" in {Path(options.out) / 'generations.json'}" if options.out is not None else ""
        raise Interrupted(f"stopped: {count} of {wanted} generations were done and are kept{place}", plain(values))
    return Report(values, (RichText(rate, style="dim"),))


def _texts(options: PromptingOptions) -> tuple[list[str], list[str]]:
    if options.prompts is None:
        return ["prompt"], [options.prompt]
    if options.prompt:
        raise ConfigError("a prompt and a file of prompts were given: give one")
    rows = read(options.prompts, required=[options.field], limit=options.limit, dialect=options.dialect)
    return [r.id for r in rows], [r.text(options.field, options.prompts) for r in rows]


def _prompts(options: PromptingOptions, bundle: Bundle, texts: Sequence[str]) -> list[list[int]]:
    if not options.chat:
        return [prompt_ids(bundle.tokenizer, text) for text in texts]
    system = [Message("system", options.system)] if options.system else []
    turns = [[*system, Message("user", text)] for text in texts]
    return [chat_ids(bundle.tokenizer, messages, options.model) for messages in turns]


def _writer(session: Display) -> OnText:
    def write(prompt: int, sample: int, text: str) -> None:
        session.write(text)

    return write


def _plain(name: str, prompt: str, g: Generation) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": prompt,
        "text": g.text,
        "stopped": g.stopped,
        "tokens": g.tokens,
        "log_prob": g.log_prob,
        "ids": list(g.ids),
    }


def _shown(name: str, prompt: str, g: Generation) -> str:
    return f"[{name}, {g.tokens} tokens, {g.stopped}]\n{prompt}{g.text}\n\n"
