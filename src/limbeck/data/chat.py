"""Chat templates: conversations laid out as text by Jinja, and tokenised with what is learned of them marked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from limbeck.data.template_sandbox import GenerationTag, LimitedEnvironment
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError, DataError, nearest

__all__ = [
    "ROLES",
    "TEMPLATES",
    "ChatTemplate",
    "Message",
    "Piece",
    "Turns",
    "merged",
    "naming_row",
    "sandbox",
    "template_text",
]

TEMPLATES: Mapping[str, str] = {
    "turns": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "bare": (
        "{% for message in messages %}{{ message.content }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Templates by name. ``turns`` names the speaker of each turn; ``bare`` is the texts one after the other."""

ROLES = ("system", "user", "assistant")
"""Who may speak."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: no text that is meant for exchange holds them
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_MARK = "\ufdd2"  # stands for an answer whose place in a layout is looked for


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        content: its text.
    """

    role: str
    content: str

    @classmethod
    def read(cls, value: Any, where: str) -> Message:
        """Read ``{"role": ..., "content": ...}``; an assistant's null content is empty.

        Raises:
            DataError: it is no such mapping, or the role is none of three.
        """
        content = value.get("content") if isinstance(value, Mapping) else None
        role = value.get("role") if isinstance(value, Mapping) else None
        if content is None and role == "assistant" and "content" in value:
            content = ""
        if not isinstance(content, str):
            raise DataError(f"a message in {where} is no mapping with a role and a text as content: {value!r:.80}")
        if role not in ROLES:
            raise DataError(f"a message in {where} has the role {role!r}, which is none of {', '.join(ROLES)}")
        return cls(role, content)

    def plain(self) -> dict[str, str]:
        """Return the message as a mapping, the way templates and files have it."""
        return {"role": self.role, "content": self.content}


Turns = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a laid-out conversation.

    Attributes:
        text: it, with texts that spell special tokens held aside (see ``ChatTemplate``).
        learned: whether it is an answer, its end token included, or what stands around.
    """

    text: str
    learned: bool


class ChatTemplate:
    """One template for one tokenizer.

    A template is given ``messages`` (with ``role`` and ``content``), ``add_generation_prompt``, ``eos_token`` and
    ``bos_token``, as transformers gives them, and runs in a sandbox. What it writes is tokenised with special-token
    strings read as tokens; where a *content* spells one, that is read as plain text, so that no row of a data set can
    end its own document. What is given and what is learned are tokenised apart and joined.

    Args:
        text: Jinja.
        tokenizer: whose special tokens it writes.
        begin: put the begin token first where the layout's ids do not begin with it; None: as the tokenizer does.
        end: write end tokens; without, ``eos_token`` is empty: a model so trained never learns to stop.

    Raises:
        ConfigError: the text is no Jinja.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, *, begin: bool | None = None, end: bool = True) -> None:
        self.text, self.tokenizer, self.end = text, tokenizer, end
        self._begins = (tokenizer.begins_with_bos if begin is None else begin) and tokenizer.bos_id is not None
        try:
            self._jinja = sandbox().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is no Jinja: line {error.lineno}: {_line(error.message)}") from None
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, TypeError) as error:
            raise ConfigError(f"the chat template cannot be compiled: {_line(error)}") from None
        names = sorted({_OPEN, *(tokenizer.piece(i) for i in tokenizer.special_ids)}, key=len, reverse=True)
        self._specials = tuple(names)
        self._spelled = re.compile("|".join(map(re.escape, names)))

    @classmethod
    def named(cls, name: str, tokenizer: Tokenizer, *, begin: bool | None = None, end: bool = True) -> ChatTemplate:
        """Return the template that ``name`` means.

        Args:
            name: ``auto`` (the tokenizer's own, else ``turns``), one of ``TEMPLATES``, a file ending in ``.jinja``, or
                Jinja text.
            tokenizer: of the model.
            begin: see the class. Where the template never writes the token, its text is given it, so that every tool
                that reads the saved template writes it too.
            end: see the class.

        Raises:
            ConfigError: it means nothing, the text is no Jinja, or there is no begin token.
        """
        text = template_text(name, tokenizer)
        if tokenizer.begins_with_bos if begin is None else begin:
            if tokenizer.bos_id is None:
                raise ConfigError("the tokenizer has no begin token to put before a conversation; set begin=false")
            if cls(text, tokenizer, begin=False, end=end)._never_begins():
                text = f"{{{{ bos_token }}}}{text}"
        return cls(text, tokenizer, begin=begin, end=end)

    def render(self, messages: Turns, *, answer: bool = False) -> str:
        """Return the conversation as text; with ``answer`` as far as an answer begins.

        Raises:
            DataError: the template refuses these messages.
        """
        return self._show(self._render(messages, answer))

    def prompt_ids(self, messages: Turns) -> list[int]:
        """Return the token ids to generate the next answer from: exactly those that training puts before it."""
        pieces = [piece for piece in self.pieces(messages) if piece.text]
        done = "".join(piece.text for piece in pieces)
        whole = self._given(messages)
        self._check_continues(done, whole)
        ids: list[int] = []
        for piece in (*pieces, Piece(whole[len(done) :], learned=False)):
            ids += self._encode(piece.text, bool(ids))
        return ids

    def begin(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Take the begin token off the front of a prompt's ``ids``: it and the rest; nothing where there is none."""
        first = list(ids[:1])
        return (first, list(ids[1:])) if first == [self.tokenizer.bos_id] else ([], list(ids))

    def encode(self, messages: Turns) -> tuple[list[int], list[bool]]:
        """Return the token ids up to the last answer's end, and which of them are learned: each answer and its end
        token.

        Raises:
            ConfigError: the template does not close an answer with the end token.
        """
        ids: list[int] = []
        learned: list[bool] = []
        for piece in self.pieces(messages):
            some = self._encode(piece.text, bool(ids))
            ids += some
            learned += [piece.learned] * len(some)
        last = max((i for i, one in enumerate(learned) if one), default=-1)
        return ids[: last + 1], learned[: last + 1]

    def pieces(self, messages: Turns) -> list[Piece]:
        """Return the conversation up to its last answer, cut where what is given ends and an answer begins, and back.

        Raises:
            ConfigError: the template does not close an answer with the end token, or lays a conversation out otherwise
                once it goes on.
        """
        out: list[Piece] = []
        done = ""
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            given, whole = self._given(messages[:i]), self._render(messages[: i + 1], answer=False)
            self._check_continues(done, given)
            self._check_continues(given, whole)
            answer, rest = self._cut(whole[len(given) :])
            out += [Piece(given[len(done) :], learned=False), Piece(answer, learned=True), Piece(rest, learned=False)]
            done = whole
        return out

    def _cut(self, text: str) -> tuple[str, str]:
        """Cut an answer's text into what is learned, its end token included, and what the template writes after it."""
        if not self.end:
            kept = len(text.rstrip())
            return text[:kept], text[kept:]
        end = self.tokenizer.piece(self.tokenizer.eos_id)
        before, found, after = text.rpartition(end)
        if not found:
            raise ConfigError(
                f"the chat template does not write the end token {end!r} after an answer, so that a model would never "
                "learn to stop: put {{ eos_token }} there"
            )
        return before + found, after

    def _check_continues(self, before: str, after: str) -> None:
        if not after.startswith(before):
            raise ConfigError(
                "the chat template lays out the beginning of a conversation otherwise once it goes on "
                f"({self._show(before)[-40:]!r} changes), so that an answer cannot be told from what is given"
            )

    def _given(self, messages: Turns) -> str:
        """Lay out ``messages`` as far as an answer begins.

        A template may refuse messages that lack what follows, such as none at all before a conversation's first
        answer. The layout that goes on with an answer is then cut where the answer begins.
        """
        try:
            return self._render(messages, answer=True)
        except DataError:
            held = [*self._held(messages), {"role": "assistant", "content": _MARK}]
            whole = self._lay_out(held, answer=False)
            before, found, _ = whole.rpartition(_MARK)
            asking = self._asking()
            at = before.rfind(asking)
            if not found or at < 0 or before[at + len(asking) :].strip():
                raise
            return before[: at + len(asking)]

    def _asking(self) -> str:
        """Return what the template writes where an answer is to begin."""
        asked = [Message("user", "a")]
        before, whole = self._render(asked, answer=False), self._render(asked, answer=True)
        self._check_continues(before, whole)
        return whole[len(before) :]

    def _never_begins(self) -> bool:
        """Return whether no conversation of several kinds begins with the begin token, and one at least is accepted."""
        question = Message("user", "a")
        found = []
        for turns in ([question], [Message("system", "a"), question], [question, Message("assistant", "a")]):
            with suppress(DataError):
                found.append(self._has_begin(self._render(turns, answer=turns[-1] is question)))
        return bool(found) and not any(found)

    def _has_begin(self, text: str) -> bool:
        """Is the first id of ``text`` the begin token?"""
        begin = self.tokenizer.piece(self.tokenizer.bos_id or 0)
        at = text.find(begin)
        return at >= 0 and self._encode(text[: at + len(begin)], False)[:1] == [self.tokenizer.bos_id]

    def _render(self, messages: Turns, answer: bool) -> str:
        return self._lay_out(self._held(messages), answer)

    def _held(self, messages: Turns) -> list[dict[str, str]]:
        return [{"role": m.role, "content": self._hold(m.content)} for m in messages]

    def _lay_out(self, held: list[dict[str, str]], answer: bool) -> str:
        t = self.tokenizer
        try:
            text = self._jinja.render(
                messages=held,
                add_generation_prompt=answer,
                eos_token=t.piece(t.eos_id) if self.end else "",
                bos_token="" if t.bos_id is None else t.piece(t.bos_id),
            )
        except Exception as error:  # what a template does wrong can be any error of Python's
            raise DataError(f"the chat template refuses a conversation: {_line(error)}") from None
        return f"{t.piece(t.bos_id or 0)}{text}" if self._begins and not self._has_begin(text) else text

    def _hold(self, content: str) -> str:
        """Put special-token strings of a content aside, so that the template's own can be told from them."""
        return self._spelled.sub(lambda m: f"{_OPEN}{self._specials.index(m[0])}{_CLOSE}", content)

    def _show(self, text: str) -> str:
        return _HELD.sub(lambda m: self._specials[int(m[1])], text)

    def _encode(self, text: str, continues: bool) -> list[int]:
        ids: list[int] = []
        for part, special in self._parts(text):
            ids += self.tokenizer.encode(part, specials=not special, continues=continues or bool(ids))
        return ids

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        at = 0
        for match in _HELD.finditer(text):
            yield text[at : match.start()], False
            yield self._specials[int(match[1])], True
            at = match.end()
        yield text[at:], False


def template_text(name: str, tokenizer: Tokenizer) -> str:
    """Return Jinja text that ``name`` means; see ``ChatTemplate.named``."""
    if name == "auto":
        return tokenizer.chat_template or TEMPLATES["turns"]
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.endswith(".jinja"):
        try:
            return Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"chat template {name} cannot be read: {error}") from None
    if "{{" in name or "{%" in name:
        return name
    known = ("auto", *TEMPLATES)
    raise ConfigError(
        f"'{name}' names no chat template{nearest(name, known)}: give {', '.join(known)}, a .jinja file, or Jinja text"
    )


@contextmanager
def naming_row(row: str, source: str) -> Iterator[None]:
    """Put the row's name before an error of the template's.

    Raises:
        DataError: the template refuses the row's conversation.
        ConfigError: it lays the conversation out in a way that cannot be learned.
    """
    try:
        yield
    except (DataError, ConfigError) as error:
        raise type(error)(f"row {row} of {source}: {error}") from None


def merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Join turns of one speaker that follow each other, a blank line between."""
    out: list[Message] = []
    for message in messages:
        if out and out[-1].role == message.role:
            out[-1] = Message(message.role, f"{out[-1].content}\n\n{message.content}".strip())
        else:
            out.append(message)
    return tuple(out)


@lru_cache(maxsize=1)
def sandbox() -> LimitedEnvironment:
    """Return the environment in which templates run, with transformers' settings, so that published ones read alike.

    ``strftime_now`` is left out: what is trained on does not depend on the day.
    """
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers' templates have it: no HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
