"""Prompts for a teacher: templates with variety, and how an answer is read back into a row."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from limbeck.data.chat import Message
from limbeck.data.rows import Row, Rows
from limbeck.errors import ConfigError, nearest
from limbeck.synth.teacher import Request, Sampling
from limbeck.synth.themes import VARIETY

__all__ = ["KINDS", "Kind", "Plan", "answer_fields"]

_SEED_BITS = 31  # endpoints take a seed of 32 bits with sign
_SHUFFLED = 1 << 20  # combinations that are listed and shuffled; of more, each is drawn


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of synthetic data.

    Attributes:
        name: what it is called on the command line.
        system: the teacher's role.
        prompt: what is asked; ``{field}`` stands for a drawn value, ``{text}`` for a given text.
        fields: of the rows that come out.
        json: the answer is a JSON object with those fields; else it is the text of the last field.
        given: name of the field that the given text becomes, where there is one.
    """

    name: str
    system: str
    prompt: str
    fields: tuple[str, ...]
    json: bool
    given: str = ""


KINDS: Mapping[str, Kind] = {
    "sonnets": Kind(
        "sonnets",
        "You are a poet of Shakespeare's time. Answer with the poem alone: no title, no remarks.",
        "Write one new sonnet on {theme}: {form}, in a {tone} tone. Fourteen lines of iambic pentameter with the "
        "rhymes ABAB CDCD EFEF GG. Do not quote or vary any existing poem.",
        ("text",),
        False,
    ),
    "paraphrase": Kind(
        "paraphrase",
        "You write training data. Answer with one JSON object and nothing else.",
        'Write two sentences about {theme}, each {form}, {tone} in style, that mean exactly the same in different '
        'words. Keep every name and number in both. Answer as {{"sentence1": "...", "sentence2": "..."}}.',
        ("sentence1", "sentence2"),
        True,
    ),
    "restate": Kind(
        "restate",
        "You restate sentences. Answer with the new sentence alone.",
        "Say the following in other words, keeping its meaning, names and numbers:\n{text}",
        ("sentence1", "sentence2"),
        False,
        "sentence1",
    ),
    "qa": Kind(
        "qa",
        "You write training data. Answer with one JSON object and nothing else.",
        'Write one question about {theme} with its answer: {form}, {tone}. The answer is true, self-contained and at '
        'most three sentences long. Answer as {{"question": "...", "answer": "..."}}.',
        ("question", "answer"),
        True,
    ),
    "instructions": Kind(
        "instructions",
        "You write training data. Answer with one JSON object and nothing else.",
        'Write one instruction that asks for {theme} {form}, as somebody {tone} would, and the ideal output. Answer as '
        '{{"instruction": "...", "input": "... or empty", "output": "..."}}.',
        ("instruction", "input", "output"),
        True,
    ),
}  # fmt: skip
"""Kinds of data by name."""

_MAY_BE_EMPTY = {"input"}


def _placeholders(text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ConfigError(f"the prompt cannot be read: {error} (write {{{{ for a brace)") from None


@dataclass(frozen=True)
class Plan:
    """All requests of a synthesis: request ``i`` is a pure function of ``i`` and these values.

    Attributes:
        kind: of data.
        count: how many requests.
        seed: of the draws.
        sampling: how answers are drawn.
        prompt: another prompt than the kind's own; empty: its own.
        system: another role than the kind's own; empty: its own.
        variety: further fields and their values, or other values for the kind's own.
        texts: given texts that ``{text}`` stands for, in turn.
        text_field: field of ``texts`` that holds them.
    """

    kind: Kind
    count: int
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    prompt: str = ""
    system: str = ""
    variety: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Rows | None = None
    text_field: str = "text"

    def __post_init__(self) -> None:
        for name, values in self.variety.items():
            if not values or not all(isinstance(v, str) and v.strip() for v in values):
                raise ConfigError(f"the variety of '{name}' holds no values: give at least one text")
        known = [*self.values, *(["text"] if self.texts is not None else [])]
        for name in self.used:
            if name not in known:
                there = ", ".join(known) or "none"
                more = "; give texts for it" if name == "text" else nearest(name, known)
                raise ConfigError(f"the prompt has an unknown field '{name}', known are {there}{more}")

    @property
    def template(self) -> str:
        """The prompt with its placeholders."""
        return self.prompt or self.kind.prompt

    @property
    def used(self) -> list[str]:
        """Names of the prompt's placeholders, each once."""
        return list(dict.fromkeys(_placeholders(self.template)))

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Field -> values that may be drawn for it."""
        own = VARIETY.get(self.kind.name, {})
        return {**own, **{name: tuple(values) for name, values in self.variety.items()}}

    def drawn(self, ordinal: int) -> dict[str, str]:
        """Return the values of request ``ordinal``: no combination comes twice before all have come."""
        names = [name for name in self.used if name != "text"]
        sizes = [len(self.values[name]) for name in names]
        total = 1
        for size in sizes:
            total *= size
        if total > _SHUFFLED:
            place = random.Random(f"{self.seed}:{ordinal}").randrange(total)
        else:
            place = _shuffled(total, self.seed, ordinal // total)[ordinal % total]
        out = {}
        for name, size in zip(names, sizes, strict=True):
            place, at = divmod(place, size)
            out[name] = self.values[name][at]
        return out

    def given(self, ordinal: int) -> str:
        """Return the text that request ``ordinal`` is given; empty where there are none."""
        if self.texts is None:
            return ""
        row = self.texts[ordinal % len(self.texts)]
        return row.text(self.text_field, self.texts.source)

    def request(self, ordinal: int) -> Request:
        """Return request ``ordinal``."""
        fields = {**self.drawn(ordinal), "text": self.given(ordinal)}
        system = self.system or self.kind.system
        messages = [Message("system", system)] if system.strip() else []
        messages.append(Message("user", self.template.format_map(fields)))
        told = json.dumps([[m.plain() for m in messages], ordinal, self.seed, self.sampling.model_dump(mode="json")])
        digest = hashlib.sha256(told.encode()).digest()
        seed = int.from_bytes(digest[-8:], "little") >> (64 - _SEED_BITS)
        name = f"{self.kind.name}:{ordinal:06d}"
        return Request(ordinal, name, digest.hex()[:40], messages, self.sampling, seed)

    def describe(self) -> dict[str, Any]:
        """Return plain values by which two plans are told apart; ``count`` may grow between sessions."""
        return {
            "kind": self.kind.name,
            "seed": self.seed,
            "sampling": self.sampling.model_dump(mode="json"),
            "prompt": self.template,
            "system": self.system or self.kind.system,
            "variety": {name: list(values) for name, values in self.values.items() if name in self.used},
            "texts": None if self.texts is None else self.texts.hash,
        }

    def row(self, ordinal: int, name: str, text: str) -> Row:
        """Read an answer back into a row, with what was asked in the field ``prompt``.

        An answer that cannot be read has the reason in the field ``unread``.
        """
        asked = self.request(ordinal).messages[-1].content
        fields, why = answer_fields(self.kind, text)
        if self.kind.given:
            fields[self.kind.given] = self.given(ordinal)
        return Row(name, {**fields, "prompt": asked, "unread": why})


def _shuffled(total: int, seed: int, turn: int) -> list[int]:
    out = list(range(total))
    random.Random(f"{seed}:{turn}:shuffle").shuffle(out)
    return out


_FENCE = re.compile(r"^\s*```[a-z]*\n(.*?)\n?```\s*$", re.DOTALL)
_PREFACE = re.compile(r"^(?:sure|certainly|of course|here(?:'s| is| are)|okay)\b[^\n]*[:!.]\s*\n+", re.IGNORECASE)
_TITLE = re.compile(r"^(?:#+ [^\n]*|\*\*[^\n]*\*\*|title:[^\n]*)\n+", re.IGNORECASE)


def answer_fields(kind: Kind, text: str) -> tuple[dict[str, str], str]:
    """Read an answer: its fields, and why it could not be read (empty: it could; all fields are then there).

    A code fence, a preface ("Here is a sonnet:") and a title are taken off.
    """
    plain = text.replace("\r\n", "\n").strip()
    if fenced := _FENCE.match(plain):
        plain = fenced.group(1).strip()
    blank = dict.fromkeys(kind.fields, "")
    if not kind.json:
        for pattern in (_PREFACE, _TITLE):
            plain = pattern.sub("", plain, count=1).strip()
        if fenced := _FENCE.match(plain):
            plain = fenced.group(1).strip()
        return {**blank, kind.fields[-1]: plain}, "" if plain else "an empty answer"
    found = _first_object(plain)
    if found is None:
        return blank, "prose in place of a JSON object"
    for name in kind.fields:
        value = found.get(name)
        if not isinstance(value, str) or not (value.strip() or name in _MAY_BE_EMPTY):
            return blank, f"the JSON object has no text under '{name}'"
        blank[name] = value.strip()
    return blank, ""


def _first_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in ``text``, wherever it begins."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, _ = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        return found if isinstance(found, dict) else None
    return None
