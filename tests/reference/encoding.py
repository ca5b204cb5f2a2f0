"""One row tokenised by itself, as ``encode_rows`` does it for many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck.data.batch import Example
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer

__all__ = ["encode_pair", "encode_text"]


def encode_pair(
    index: int, row: Row, template: Template, tokenizer: Tokenizer, context: int, *, source: str = "rows", **how: Any
) -> Example:
    """Tokenise one row as prompt and answer."""
    (example,), _ = encode_rows(Rows.of([row], source), tokenizer, context, template=template, **how)
    return replace(example, row=index)


def encode_text(
    index: int, row: Row, tokenizer: Tokenizer, context: int, *, source: str = "rows", **how: Any
) -> list[Example]:
    """Tokenise one document, cut into chunks."""
    chunks, _ = encode_rows(Rows.of([row], source), tokenizer, context, **how)
    return [replace(chunk, row=index) for chunk in chunks]
