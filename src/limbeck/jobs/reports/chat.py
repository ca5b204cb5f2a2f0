"""A chat template for people: an example conversation laid out, what is learned of it marked."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text

from limbeck.data.chat import ChatTemplate, Message

__all__ = ["EXAMPLE", "describe_chat", "show_chat"]

EXAMPLE = (
    Message("system", "Answer in few words."),
    Message("user", "Which animal purrs?"),
    Message("assistant", "A cat."),
    Message("user", "And which one barks?"),
    Message("assistant", "A dog."),
)
"""A conversation of two questions, with a system's turn before them."""


def describe_chat(template: ChatTemplate) -> dict[str, Any]:
    """Return the template, and ``EXAMPLE`` as it lays it out: text, the texts that are learned, and token ids with
    targets.
    """
    pieces = template.pieces(EXAMPLE)
    ids, learned = template.encode(EXAMPLE)
    return {
        "template": template.text,
        "text": template.render(EXAMPLE),
        "prompt": template.render(EXAMPLE[:-1], answer=True),
        "learned": [piece.text for piece in pieces if piece.learned],
        "ids": ids,
        "targets": learned,
    }


def show_chat(template: ChatTemplate) -> list[RenderableType]:
    """Return the same for people; as in a dry run, ``[learned]`` is green and what is given cyan."""
    text = Text()
    for piece in template.pieces(EXAMPLE):
        if piece.text:
            text.append(f"[{piece.text}]" if piece.learned else piece.text, "bold green" if piece.learned else "cyan")
    return [
        Panel(Text(template.text), title="chat template", title_align="left"),
        Panel(text, title="an example, [learned] in brackets", title_align="left"),
    ]
