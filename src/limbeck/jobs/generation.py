"""Prompts as token ids and the tokens that end an answer, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.data.chat import ChatTemplate, Message
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError

__all__ = ["chat_ids", "prompt_ids"]


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text to continue, behind a begin token where the model has one or the text is empty."""
    return tokenizer.with_begin(tokenizer.encode(text))


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message], name: str) -> list[int]:
    """Return the ids of a conversation up to where the assistant answers, by the tokenizer's chat template.

    Args:
        tokenizer: holds the template.
        messages: system, user and assistant turns, the last of them the user's.
        name: how messages call the model.

    Raises:
        ConfigError: the model has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ConfigError(f"{name} has no chat template: train it on task instructions, or leave out chat")
    return ChatTemplate(tokenizer.chat_template, tokenizer).prompt_ids(list(messages))
