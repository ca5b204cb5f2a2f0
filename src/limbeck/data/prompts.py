"""Rows -> examples: templates, answer masks, end tokens, truncation and chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from string import Formatter
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from limbeck.config import Config
from limbeck.data.batch import Example
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import DataError, NothingToLearnError

__all__ = [
    "EncodingReport",
    "Template",
    "Truncate",
    "cut_prompt",
    "encode_rows",
    "prompt_ids",
]

Truncate = Literal["prompt_left", "prompt_right", "answer_right", "drop"]
"""What gives way where a row is longer than the context.

``prompt_left``: the prompt loses its beginning (its last token stays); an answer that still does not fit loses its end.
``prompt_right``: the same with the prompt's end, for prompts whose beginning matters more. ``answer_right``: the row
loses its end, whatever stands there. ``drop``: the row is left out.
"""

_BULK = 1024  # rows tokenised at a time


class Template(Config):
    """How a row becomes a prompt and an answer; ``{field}`` stands for a value, ``{{`` and ``}}`` for braces.

    Both texts are tokenised apart and joined, so the border between what is given and what is learned is exact. With
    byte-level tokenizers the space between them belongs to the answer: ``"Answer:"`` and ``" {answer}"``.
    """

    prompt: str = Field(description="what is given, e.g. 'Question: {question}\\nAnswer:'")
    answer: str = Field(description="what is learned, e.g. ' {answer}'")

    @field_validator("prompt", "answer")
    @classmethod
    def _readable(cls, text: str) -> str:
        for _, name, form, conversion in Formatter().parse(text):
            if name is not None and (not name.isidentifier() or form or conversion):
                raise ValueError(
                    f"placeholders are plain field names in braces, not '{{{name}}}' (write {{{{ for a brace)"
                )
        return text

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields used, prompt first, each once."""
        return tuple(dict.fromkeys((*_fields(self.prompt), *_fields(self.answer))))

    def render_prompt(self, row: Row, source: str = "") -> str:
        """Return the prompt text of ``row``.

        Raises:
            DataError: the row has no such field, or nothing in it.
        """
        return _render(self.prompt, row, source)

    def render_answer(self, row: Row, source: str = "") -> str:
        """Answer text of ``row``; raises as ``render_prompt`` does."""
        return _render(self.answer, row, source)


def _fields(text: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def _render(text: str, row: Row, source: str) -> str:
    return text.format(**{name: row.text(name, source) for name in _fields(text)})


@dataclass(frozen=True, slots=True)
class EncodingReport:
    """What became of the rows of a data set.

    Attributes:
        rows: rows given.
        examples: examples made; a long document makes several.
        tokens: tokens in them.
        target_tokens: tokens learned, i.e. predicted from the token before.
        truncated: ids of pairs that were cut to the context and kept.
        too_long: ids of rows left out by ``truncate="drop"``.
        empty: ids of rows left out because nothing was left to learn.
    """

    rows: int
    examples: int
    tokens: int
    target_tokens: int
    truncated: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @property
    def dropped(self) -> tuple[str, ...]:
        """Ids of all rows left out."""
        return self.too_long + self.empty

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report: counts, and the first ids of each kind."""
        kinds = {"truncated": self.truncated, "too_long": self.too_long, "empty": self.empty}
        counts = {"rows": self.rows, "examples": self.examples, "tokens": self.tokens}
        ids = {f"{name}_ids": list(found[:10]) for name, found in kinds.items() if found}
        return counts | {"target_tokens": self.target_tokens} | {k: len(v) for k, v in kinds.items()} | ids


def prompt_ids(
    row: Row, template: Template, tokenizer: Tokenizer, *, bos: bool | None = None, limit: int | None = None
) -> list[int]:
    """Return the token ids to generate an answer from: exactly those that training puts before the answer.

    Args:
        row: the row; its answer is not looked at.
        template: prompt and answer.
        tokenizer: of the model.
        bos: begin with the begin token; None: as the tokenizer does.
        limit: most tokens; the prompt loses its beginning, not the begin token.
    """
    first = _bos(tokenizer, bos)
    ids = tokenizer.encode(template.render_prompt(row))
    room = None if limit is None else max(limit - len(first), 0)
    return first + (ids if room is None else ids[max(len(ids) - room, 0) :])


def encode_rows(
    rows: Rows,
    tokenizer: Tokenizer,
    context: int,
    *,
    template: Template | None = None,
    field: str = "text",
    truncate: Truncate = "prompt_left",
    overlap: int = 0,
    end_token: bool = True,
    bos: bool | None = None,
    on_empty: Literal["error", "count"] = "error",
) -> tuple[list[Example], EncodingReport]:
    """Tokenise a data set, as pairs with ``template``, else as documents; many rows at a time.

    Args:
        rows: the data set; ``Example.row`` is the place in it.
        tokenizer: of the model.
        context: most tokens of an example.
        template: prompt and answer; None: each row is a document in ``field``.
        field: the column with the text of a document.
        truncate: what gives way where a pair is longer than ``context``.
        overlap: tokens that chunks of a document share, as context and not as targets. With 0 the first token of a
            later chunk is predicted from nothing, so that it is not learned; with 1 or more every token is.
        end_token: append the end token, as a target.
        bos: begin with the begin token; None: as the tokenizer does.
        on_empty: a row with nothing to learn is an error that names it, or is left out and counted (I6).

    Returns:
        The examples and the report.

    Raises:
        DataError: a field that is not there, a context too small, or every row left out.
        NothingToLearnError: a row with nothing to learn, under ``on_empty="error"``.
    """
    examples: list[Example] = []
    truncated: list[str] = []
    too_long: list[str] = []
    empty: list[str] = []
    first, end = _bos(tokenizer, bos), _end(tokenizer, end_token)
    for index, (row, prompt, answer) in enumerate(_tokens(rows, tokenizer, template, field)):
        whole = len(first) + len(prompt) + len(answer) + len(end)
        if template is None:
            made = _chunks(index, row.id, first + answer + end, context, overlap) if answer else []
        else:
            fitted = _fit(first, prompt, answer + end, context, truncate)
            if fitted is None:
                too_long.append(row.id)
                continue
            made = [_example(index, row.id, *fitted)] if answer else []
        made = [example for example in made if example.predictions]
        if not made and on_empty == "error":
            raise _nothing(_where(row, rows.source), context)
        if not made:
            empty.append(row.id)
        elif template is not None and whole > context:
            truncated.append(row.id)
        examples += made
    if not examples:
        raise DataError(
            f"no row of {rows.source} is left to learn from: of {len(rows)}, {len(too_long)} are longer than {context} "
            f"tokens and {len(empty)} have no target; raise the context or check the template"
        )
    tokens, targets = sum(len(e) for e in examples), sum(e.predictions for e in examples)
    kinds = (tuple(truncated), tuple(too_long), tuple(empty))
    return examples, EncodingReport(len(rows), len(examples), tokens, targets, *kinds)


def _tokens(
    rows: Rows, tokenizer: Tokenizer, template: Template | None, field: str
) -> Iterator[tuple[Row, list[int], list[int]]]:
    """Each row with the tokens of its prompt (none without template) and of its answer or text."""
    remaining = iter(rows)
    while some := list(islice(remaining, _BULK)):
        if template is None:
            texts = tokenizer.encode_many([row.text(field, rows.source) for row in some])
            yield from ((row, [], ids) for row, ids in zip(some, texts, strict=True))
        else:
            prompts = tokenizer.encode_many([template.render_prompt(row, rows.source) for row in some])
            answers = [template.render_answer(row, rows.source) for row in some]
            alone = tokenizer.encode_many(answers)
            after = tokenizer.encode_many(answers, continues=True)
            for row, prompt, text, a, b in zip(some, prompts, answers, alone, after, strict=True):
                learned = b if prompt else a
                yield row, prompt, learned if text.strip() else []  # a blank answer teaches nothing but to stop


def cut_prompt(
    first: list[int], prompt: list[int], learned_tokens: int, context: int, truncate: Truncate
) -> list[int] | None:
    """Return what is given, begin token and prompt, cut as ``truncate`` says; None: the row is to be left out.

    Args:
        first: the begin token, or nothing; it stays.
        prompt: tokens of the prompt.
        learned_tokens: how many are to follow.
        context: most tokens in all.
        truncate: what gives way.
    """
    over = len(first) + len(prompt) + learned_tokens - context
    if over > 0 and truncate == "drop":
        return None
    if over > 0 and truncate in ("prompt_left", "prompt_right"):
        spare = max(len(prompt) - (0 if first else 1), 0)  # something must stand before the first target
        cut = min(over, spare)
        return first + (prompt[cut:] if truncate == "prompt_left" else prompt[: len(prompt) - cut])
    return first + prompt


def _fit(
    first: list[int], prompt: list[int], learned: list[int], context: int, truncate: Truncate
) -> tuple[list[int], int] | None:
    """Ids within ``context`` and the place of the first target; None: the row is to be left out."""
    given = cut_prompt(first, prompt, len(learned), context, truncate)
    return None if given is None else ((given + learned)[:context], min(len(given), context))


def _example(index: int, name: str, ids: Sequence[int], start: int, offset: int = 0) -> Example:
    target = np.arange(len(ids)) >= start
    return Example(index, name, np.asarray(ids, dtype=np.int32), target, offset)


def _chunks(index: int, name: str, ids: list[int], context: int, overlap: int) -> list[Example]:
    if not 0 <= overlap < context or context < 2:
        raise DataError(
            f"chunks of {context} tokens cannot overlap by {overlap}; the context must be larger, and at least 2"
        )
    chunks = []
    for offset in range(0, max(len(ids) - overlap, 1), context - overlap):
        piece = ids[offset : offset + context]
        chunks.append(_example(index, name, piece, overlap if offset else 0, offset))
    return [chunk for chunk in chunks if chunk.predictions]


def _bos(tokenizer: Tokenizer, bos: bool | None) -> list[int]:
    wanted = tokenizer.begins_with_bos if bos is None else bos
    if not wanted:
        return []
    if tokenizer.bos_id is None:
        raise DataError("the tokenizer has no begin token to put before each document; set bos=false")
    return [tokenizer.bos_id]


def _end(tokenizer: Tokenizer, wanted: bool) -> list[int]:
    return [tokenizer.eos_id] if wanted else []


def _where(row: Row, source: str) -> str:
    return f"row {row.id}" + (f" of {source}" if source else "")


def _nothing(where: str, context: int) -> NothingToLearnError:
    return NothingToLearnError(
        f"{where} has nothing to learn: its text is blank, or no target is left in a context of {context} tokens; "
        "fill it in, shorten its prompt, raise the context, or leave such rows out"
    )
