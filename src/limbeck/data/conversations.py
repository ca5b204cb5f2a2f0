"""Instructions and conversations in their public formats, read into one shape: messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from limbeck.data.chat import Message, Turns, merged
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError

__all__ = [
    "FORMS",
    "FORM_FIELDS",
    "Form",
    "answered",
    "flat",
    "instruction",
    "one_form",
    "read_conversation",
    "read_messages",
    "read_sharegpt",
    "spoken",
    "text_of",
]

Form = tuple[str, Callable[[Mapping[str, Any]], bool]]


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: all(name in fields for name in names)


FORMS: tuple[Form, ...] = (
    ("messages", lambda fields: fields.get("messages") is not None),
    ("ShareGPT conversations", lambda fields: fields.get("conversations") is not None),
    ("Alpaca", _has("instruction", "output")),
    ("prompt and completion", _has("prompt", "completion")),
    ("messages", _has("messages")),  # of a null row
    ("ShareGPT conversations", _has("conversations")),
)
"""Formats of instructions by name, each with what tells it; the first that holds is a row's.

A row whose answer is null has its format all the same: ``read_instructions`` refuses or counts it.
"""

FORM_FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "ShareGPT conversations": ("conversations",),
    "Alpaca": ("instruction", "output"),
    "prompt and completion": ("prompt", "completion"),
}
"""What a row of each format must have."""

_SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                   "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}  # fmt: skip
"""Who speaks in a ShareGPT conversation, and who that is here."""


def one_form(rows: Rows, forms: Sequence[Form], wanted: str) -> str:
    """Return the name of the format that every row of ``rows`` has.

    Args:
        rows: a data set.
        forms: the formats.
        wanted: words for what they hold, for messages.

    Raises:
        DataError: a row has none of the formats, or another than the first row.
    """
    found = ""
    for row in rows:
        fits = [name for name, holds in forms if holds(row.fields)]
        null = any(value is None for value in row.fields.values())  # which fits several formats, so the file's decides
        name = found if null and found in fits else next(iter(fits), "")
        if not name:
            known = "; ".join(dict.fromkeys(n for n, _ in forms))
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
    """Return the text in ``field``; a number or boolean is spelled.

    Raises:
        DataError: it is missing, or no text.
    """
    return row.text(field, source)


def read_sharegpt(row: Row, field: str, source: str) -> tuple[Message, ...]:
    """Return messages in ``field``, a list of ``{"from": ..., "value": ...}`` as ShareGPT has them.

    Raises:
        DataError: it is no such list, or somebody speaks who is not known.
    """
    where = f"field '{field}' of row {row.id} of {source}"
    turns = row.value(field, source)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where} is no list of turns")
    out = []
    for turn in turns:
        if isinstance(turn, Mapping) and "from" not in turn and "role" in turn:
            out.append(Message.read(turn, where))
            continue
        who = turn.get("from") if isinstance(turn, Mapping) else None
        said = turn.get("value") if isinstance(turn, Mapping) else None
        role = _SHAREGPT_ROLES.get(who.lower()) if isinstance(who, str) else None
        if role is None or not isinstance(said, str | None) or (said is None and role != "assistant"):
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(
                f"a turn in {where} has no text as 'value', or a 'from' that is none of {known}: {turn!r:.60}"
            )
        out.append(Message(role, said or ""))
    return tuple(out)


def read_messages(row: Row, field: str, source: str) -> tuple[Message, ...]:
    """Return messages in ``field``, a list of ``{"role": ..., "content": ...}``.

    Raises:
        DataError: it is no list of messages, or an empty one.
    """
    return spoken(row.value(field, source), f"field '{field}' of row {row.id} of {source}")


def spoken(value: Any, where: str) -> tuple[Message, ...]:
    """Return messages in a list of mappings; raises as ``read_messages`` does."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} is no list of messages")
    return tuple(Message.read(one, where) for one in value)


def instruction(row: Row, source: str) -> tuple[Message, ...]:
    """Return the user's turn of an Alpaca row: the instruction, and the input under it where there is one."""
    told = text_of(row, "instruction", source).strip()
    given = row.fields.get("input")
    given = "" if given is None else text_of(row, "input", source).strip()
    return (Message("user", f"{told}\n\n{given}" if given else told),)


def read_conversation(row: Row, form: str, source: str) -> tuple[Message, ...]:
    """Return messages of a row that has ``form``.

    Raises:
        DataError: a field is missing or holds something else.
    """
    if form == "messages":
        return merged(read_messages(row, "messages", source))
    if form == "ShareGPT conversations":
        return merged(read_sharegpt(row, "conversations", source))
    if form == "Alpaca":
        return (*instruction(row, source), Message("assistant", text_of(row, "output", source).strip()))
    given, answer = text_of(row, "prompt", source), text_of(row, "completion", source)
    return (Message("user", given), Message("assistant", answer))


def answered(messages: Turns) -> bool:
    """Return whether there is an answer, and no blank one."""
    answers = [m.content for m in messages if m.role == "assistant"]
    return bool(answers) and all(content.strip() for content in answers)


def flat(messages: Iterable[Message]) -> str:
    """Return the texts of ``messages``, a blank line between: for people, for splitting and for audits."""
    return "\n\n".join(message.content for message in messages)
