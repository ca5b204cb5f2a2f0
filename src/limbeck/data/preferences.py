"""Preference pairs in their public formats, read into one shape: the turns before, and two answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from limbeck.data.chat import Message, Turns, merged
from limbeck.data.conversations import Form, flat, instruction, one_form, read_messages, spoken, text_of
from limbeck.data.dialect import Dialect
from limbeck.data.readers import read
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError

__all__ = ["PREFERENCE_FORMS", "read_preferences", "turns_before"]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SIDES = ("chosen", "rejected")
_OUTPUTS = ("preferred_output", "non_preferred_output")

Sides = tuple[tuple[Message, ...], str, str]


def _texts(fields: Mapping[str, Any]) -> bool:
    return all(side in fields and isinstance(fields[side], str | None) for side in _SIDES)


def _lists(fields: Mapping[str, Any]) -> bool:
    return all(side in fields and isinstance(fields[side], list | None) for side in _SIDES)


def _dialogue(fields: Mapping[str, Any]) -> bool:
    sides = [fields[side] for side in _SIDES if fields.get(side) is not None]
    return _texts(fields) and bool(sides) and all(_SPEAKER.match(side) for side in sides)


PREFERENCE_FORMS: tuple[Form, ...] = (
    ("input messages and two outputs", lambda f: "input" in f and all(k in f for k in _OUTPUTS)),
    ("dialogues", lambda f: "prompt" not in f and _dialogue(f)),
    ("system and question", lambda f: "question" in f and _texts(f)),
    ("instruction", lambda f: "instruction" in f and _texts(f)),
    ("prompt and two texts", lambda f: "prompt" in f and isinstance(f["prompt"], str | None) and _texts(f)),
    ("prompt and two message lists", lambda f: isinstance(f.get("prompt"), list) and _lists(f)),
    ("two message lists", lambda f: f.get("prompt") is None and _lists(f)),
)  # fmt: skip
"""Formats of pairs by name, each with what tells it; the first that holds is a row's.

``dialogues`` are whole conversations of ``Human`` and ``Assistant`` (Bai et al. 2022) that part at the last answer;
``instruction`` has an Alpaca instruction and input beside the two sides; ``system and question`` is the layout of the
Orca pairs, ``input messages and two outputs`` that of hosted fine-tuning services. A pair with a null side has its
format all the same: ``read_preferences`` refuses or counts it.
"""

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "input messages and two outputs": ("input", *_OUTPUTS),
    "dialogues": _SIDES,
    "system and question": ("question", *_SIDES),
    "instruction": ("instruction", *_SIDES),
    "prompt and two texts": ("prompt", *_SIDES),
    "prompt and two message lists": ("prompt", *_SIDES),
    "two message lists": _SIDES,
}
"""What a pair of each format must have."""


def read_preferences(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    dialect: Dialect | None = None,
    empty: Literal["error", "count"] = "error",
    equal: Literal["error", "count"] = "error",
) -> Rows:
    """Read preference pairs of any of ``PREFERENCE_FORMS``.

    Args:
        source: as ``readers.read`` takes it.
        columns: our field <- their column.
        limit: only the first rows.
        dialect: as ``readers.read`` takes it.
        empty: a blank answer, or nothing in a field, is an error that names the row, or the row is left out and named
            in ``Rows.dropped``.
        equal: the same for a pair whose two answers are one.

    Returns:
        Rows with ``prompt`` (the text of all turns before the answers), ``chosen`` and ``rejected`` (texts), and
        ``messages`` (the turns before, as mappings; see ``turns_before``).

    Raises:
        DataError: mixed or unknown formats, sides that do not part at the last answer, a blank or twice equal answer.
    """
    raw = read(source, columns=columns, limit=limit, dialect=dialect)
    form = one_form(raw, PREFERENCE_FORMS, "preference pair")
    kept: list[Row] = []
    dropped: list[str] = list(raw.dropped)
    for row in raw:
        where = f"row {row.id} of {raw.source}"
        lacking = [name for name in _FIELDS[form] if row.fields.get(name) is None]
        if lacking:
            if empty == "error":
                raise DataError(f"{where} has nothing in its field '{lacking[0]}'; fill it in, or set empty=count")
            dropped.append(row.id)
            continue
        before, chosen, rejected = _sides(row, form, raw.source)
        if not chosen.strip() or not rejected.strip():
            side = _SIDES[bool(chosen.strip())]
            if empty == "error":
                raise DataError(f"{where} has an empty answer on its {side} side; fill it in, or set empty=count")
            dropped.append(row.id)
        elif chosen.strip() == rejected.strip():
            if equal == "error":
                raise DataError(
                    f"{where} has equal sides, of which none can be preferred; remove it, or set equal=count"
                )
            dropped.append(row.id)
        else:
            turns = [message.plain() for message in before]
            fields = {"prompt": flat(before), "chosen": chosen, "rejected": rejected, "messages": turns}
            kept.append(Row(row.id, fields))
    if not kept:
        raise DataError(f"no row of {raw.source} is a pair of two different answers")
    return Rows.of(kept, raw.source, tuple(dropped), raw.notes)


def turns_before(row: Row) -> tuple[Message, ...]:
    """Return the turns before the answers of a row that ``read_preferences`` read."""
    return tuple(Message(m["role"], m["content"]) for m in row.fields["messages"])


def _sides(row: Row, form: str, source: str) -> Sides:
    where = f"row {row.id} of {source}"
    if form == "dialogues":
        return _part(_turns(text_of(row, "chosen", source)), _turns(text_of(row, "rejected", source)), where)
    if form == "two message lists":
        return _part(
            merged(read_messages(row, "chosen", source)), merged(read_messages(row, "rejected", source)), where
        )
    if form == "input messages and two outputs":
        given = row.value("input", source)
        listed = given.get("messages") if isinstance(given, Mapping) else given
        before = spoken(listed, f"field 'input' of {where}")
        return _answers(before, row, _OUTPUTS, source)
    if form == "prompt and two message lists":
        return _answers(read_messages(row, "prompt", source), row, _SIDES, source)
    if form == "instruction":
        before = instruction(row, source)
    elif form == "system and question":
        system = row.fields.get("system") or ""
        before = (Message("user", text_of(row, "question", source)),)
        before = (Message("system", str(system)), *before) if str(system).strip() else before
    else:
        before = (Message("user", text_of(row, "prompt", source)),)
    return before, text_of(row, "chosen", source), text_of(row, "rejected", source)


def _answers(before: Turns, row: Row, fields: tuple[str, str], source: str) -> Sides:
    answers = []
    for field in fields:
        turns = read_messages(row, field, source)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise DataError(f"field '{field}' of row {row.id} of {source} must hold one message, of the assistant")
        answers.append(turns[0].content)
    return tuple(before), answers[0], answers[1]


def _turns(text: str) -> tuple[Message, ...]:
    """Return a dialogue's turns; those of one speaker that follow each other are one."""
    _, *parts = _SPEAKER.split(text)
    return merged(Message(_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def _part(chosen: Turns, rejected: Turns, where: str) -> Sides:
    """Two conversations into the turns that they share and their last answers."""
    *before, last = chosen
    *other, last_other = rejected
    if before != other or not before or {last.role, last_other.role} != {"assistant"}:
        raise DataError(
            f"{where} is no pair: its two sides must share all turns but the last, and end with an answer each"
        )
    return tuple(before), last.content, last_other.content
