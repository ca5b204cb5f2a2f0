"""Instructions and conversations as data sets and as tokens: every answer and its end are learned, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from limbeck.data.batch import Example
from limbeck.data.chat import ChatTemplate, Message, naming_row
from limbeck.data.conversations import FORM_FIELDS, FORMS, answered, flat, one_form, read_conversation
from limbeck.data.dialect import Dialect
from limbeck.data.prompts import EncodingReport, Truncate, cut_prompt
from limbeck.data.readers import read
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError, NothingToLearnError

__all__ = ["encode_conversations", "read_instructions", "turns_of"]


def read_instructions(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    dialect: Dialect | None = None,
    empty: Literal["error", "count"] = "error",
) -> Rows:
    """Read instructions of any of ``conversations.FORMS``.

    Args:
        source: as ``readers.read`` takes it.
        columns: our field <- their column.
        limit: only the first rows.
        dialect: as ``readers.read`` takes it.
        empty: a row without an answer, or with a blank one, is an error that names it, or left out and named in
            ``Rows.dropped``.

    Returns:
        Rows with ``prompt`` (the text of all turns before the last answer), ``answer`` (the last one), and ``messages``
        (all turns up to it, as mappings; see ``turns_of``).

    Raises:
        DataError: mixed or unknown formats, or what ``empty`` refuses.
    """
    raw = read(source, columns=columns, limit=limit, dialect=dialect)
    form = one_form(raw, FORMS, "instruction")
    kept: list[Row] = []
    dropped: list[str] = list(raw.dropped)
    for row in raw:
        lacking = [name for name in FORM_FIELDS[form] if row.fields.get(name) is None]
        if lacking:
            if empty == "error":
                where = f"row {row.id} of {raw.source}"
                raise DataError(f"{where} has nothing in its field '{lacking[0]}'; fill it in, or set empty=count")
            dropped.append(row.id)
            continue
        turns = read_conversation(row, form, raw.source)
        while turns and turns[-1].role != "assistant":
            turns = turns[:-1]  # nothing follows it that could be learned
        if not answered(turns):
            if empty == "error":
                raise DataError(
                    f"row {row.id} of {raw.source} has an empty answer, or none; fill it in, or set empty=count"
                )
            dropped.append(row.id)
            continue
        fields = {"prompt": flat(turns[:-1]), "answer": turns[-1].content, "messages": [m.plain() for m in turns]}
        kept.append(Row(row.id, fields))
    if not kept:
        raise DataError(f"no row of {raw.source} has an answer")
    return Rows.of(kept, raw.source, tuple(dropped), raw.notes)


def turns_of(row: Row) -> tuple[Message, ...]:
    """Return all turns of a row that ``read_instructions`` read; the last is an answer."""
    return tuple(Message(m["role"], m["content"]) for m in row.fields["messages"])


def encode_conversations(
    rows: Rows,
    template: ChatTemplate,
    context: int,
    *,
    truncate: Truncate = "prompt_left",
    on_empty: Literal["error", "count"] = "error",
) -> tuple[list[Example], EncodingReport]:
    """Tokenise conversations; each of their answers, its end token included, is a target.

    Args:
        rows: as ``read_instructions`` gives them.
        template: lays out the turns.
        context: most tokens.
        truncate: what gives way where a conversation is longer; the prompt is what stands before the first answer.
        on_empty: a row with nothing to learn left is an error that names it, or counted.

    Returns:
        The examples, and a report.

    Raises:
        DataError: no row is left.
        NothingToLearnError: a row has no target left within the context, under ``on_empty="error"``.
    """
    examples: list[Example] = []
    truncated: list[str] = []
    too_long: list[str] = []
    empty: list[str] = []
    for index, row in enumerate(rows):
        with naming_row(row.id, rows.source):
            ids, learned = template.encode(turns_of(row))
        start = learned.index(True)
        first, prompt = template.begin(ids[:start])
        given = cut_prompt(first, prompt, len(ids) - start, context, truncate)
        if given is None:
            too_long.append(row.id)
            continue
        whole = np.asarray((given + ids[start:])[:context], dtype=np.int32)
        target = np.array(([False] * len(given) + learned[start:])[:context])
        example = Example(index, row.id, whole, target)
        if not example.predictions:
            if on_empty == "error":
                raise NothingToLearnError(
                    f"row {row.id} of {rows.source} has no answer left: its prompt fills the context of {context} "
                    "tokens; cut prompts (truncate=prompt_left), raise the context, or set empty=count"
                )
            empty.append(row.id)
            continue
        if len(ids) > context:
            truncated.append(row.id)
        examples.append(example)
    if not examples:
        raise DataError(
            f"no row of {rows.source} is left to learn from: of {len(rows)}, {len(too_long)} are longer than {context} "
            f"tokens and {len(empty)} have no target; raise the context or cut prompts"
        )
    tokens, targets = sum(len(e) for e in examples), sum(e.predictions for e in examples)
    kinds = (tuple(truncated), tuple(too_long), tuple(empty))
    return examples, EncodingReport(len(rows), len(examples), tokens, targets, *kinds)
