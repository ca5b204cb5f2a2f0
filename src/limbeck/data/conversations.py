"""Instructions and conversations in their public formats, read into one shape: messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from limbeck.data.chat import Message, Turns, merged
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError

__all__ = [
    "FORMS",
    "Form",
    "answered",
    "flat",
    "instruction",
    "one_form",
    "read_conversation",
    "read_messages",
    "spoken",
    "text_of",
]

Form = tuple[str, Callable[[Mapping[str, Any]], bool]]


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: all(fields.get(name) is not None for name in names)


FORMS: tuple[Form, ...] = (
    ("messages", _has("messages")),
    ("Alpaca", _has("instruction", "output")),
    ("prompt and completion", _has("prompt", "completion")),
)
"""Formats of instructions by name, each with what tells it; the first that holds is a row's."""


def one_form(rows: Rows, forms: Sequence[Form], wanted: str) -> str:
    """The name of the format that every row of ``rows`` has.

    Args:
        rows: a data set.
        forms: the formats.
        wanted: words for what they hold, for messages.

    Raises:
        DataError: a row has none of the formats, or another than the first row.
    """
    found = ""
    for row in rows:
        name = next((name for name, holds in forms if holds(row.fields)), "")
        if not name:
            known = "; ".join(n for n, _ in forms)
            raise DataError(
                f"row {row.id} of {rows.source} is no {wanted} in a known format ({known}); its fields are "
                f"{', '.join(row.fields)} (a column mapping can rename them)"
            )
        found = found or name
        if name != found:
            raise DataError(
                f"{rows.source} mixes formats: row {row.id} has the format '{name}', and those before it '{found}'; "
                "put them in two files"
            )
    return found


def text_of(row: Row, field: str, source: str) -> str:
    """Text in ``field``.

    Raises:
        DataError: it is missing, or no text.
    """
    value = row.value(field, source)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(f"field '{field}' of row {row.id} of {source} is no text, but a {kind}")
    return value


def read_messages(row: Row, field: str, source: str) -> tuple[Message, ...]:
    """Messages in ``field``, a list of ``{"role": ..., "content": ...}``.

    Raises:
        DataError: it is no list of messages, or an empty one.
    """
    return spoken(row.value(field, source), f"field '{field}' of row {row.id} of {source}")


def spoken(value: Any, where: str) -> tuple[Message, ...]:
    """Messages in a list of mappings; raises as ``read_messages`` does."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} is no list of messages")
    return tuple(Message.read(one, where) for one in value)


def instruction(row: Row, source: str) -> tuple[Message, ...]:
    """The user's turn of an Alpaca row: the instruction, and the input under it where there is one."""
    told = text_of(row, "instruction", source).strip()
    given = row.fields.get("input")
    given = "" if given is None else text_of(row, "input", source).strip()
    return (Message("user", f"{told}\n\n{given}" if given else told),)


def read_conversation(row: Row, form: str, source: str) -> tuple[Message, ...]:
    """Messages of a row that has ``form``.

    Raises:
        DataError: a field is missing or holds something else.
    """
    if form == "messages":
        return merged(read_messages(row, "messages", source))
    if form == "Alpaca":
        return (*instruction(row, source), Message("assistant", text_of(row, "output", source).strip()))
    given, answer = text_of(row, "prompt", source), text_of(row, "completion", source)
    return (Message("user", given), Message("assistant", answer))


def answered(messages: Turns) -> bool:
    """Whether there is an answer, and no blank one."""
    answers = [m.content for m in messages if m.role == "assistant"]
    return bool(answers) and all(content.strip() for content in answers)


def flat(messages: Iterable[Message]) -> str:
    """The texts of ``messages``, a blank line between: for people, for splitting and for audits."""
    return "\n\n".join(message.content for message in messages)
