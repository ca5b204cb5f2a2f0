"""Files of a tokenizer: the backend, the ids of its named tokens, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from limbeck.errors import CheckpointError, ModelError

__all__ = [
    "BPE_FILES",
    "END_OF_TEXT",
    "TEMPLATE_FILE",
    "USUAL_ENDS",
    "byte_level",
    "read_backend",
    "read_chat_template",
    "read_json",
    "token_id",
]

END_OF_TEXT = "<|endoftext|>"
"""End token of GPT-2 and of every tokenizer trained here."""

USUAL_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>")
"""End tokens of published models, for a tokenizer that names none."""

BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""Names of GPT-2's pair of files."""

TEMPLATE_FILE = "chat_template.jinja"
"""File of the chat template, read before the tokenizer's config."""


def byte_level(model: models.BPE, *, add_prefix_space: bool) -> tokenizers.Tokenizer:
    """Return a byte-level tokenizer around ``model``."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def read_backend(folder: Path, named: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read ``tokenizer.json``, or GPT-2's pair of files.

    Raises:
        ModelError: there is neither.
        CheckpointError: a file is not what its name says.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            return tokenizers.Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{whole} is not a tokenizer: {_line(error)}") from None
    for vocabulary, merges in BPE_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            try:
                model = models.BPE.from_file(str(folder / vocabulary), str(folder / merges))
            except Exception as error:
                pair = f"{folder / vocabulary} and {merges}"
                raise CheckpointError(f"{pair} are no byte-pair vocabulary: {_line(error)}") from None
            backend = byte_level(model, add_prefix_space=named.get("add_prefix_space") is True)
            backend.add_special_tokens([name for name in USUAL_ENDS if backend.token_to_id(name) is not None])
            return backend
    wanted = "tokenizer.json, nor vocab.json with merges.txt, nor encoder.json with vocab.bpe"
    only = (
        "; its SentencePiece tokenizer.model must be converted first" if (folder / "tokenizer.model").exists() else ""
    )
    raise ModelError(f"{folder} holds no {wanted}{only}")


def token_id(
    backend: tokenizers.Tokenizer, folder: Path, kind: str, named: Mapping[str, Any], generation: Mapping[str, Any]
) -> int | None:
    """Return the id of the ``kind`` token: by its name in ``named``, else by the id in ``generation``, else None.

    Raises:
        ModelError: the vocabulary does not hold the name.
    """
    name = named.get(f"{kind}_token")
    if isinstance(name, Mapping):
        name = name.get("content")
    if name is not None:
        found = backend.token_to_id(str(name))
        if found is None:
            raise ModelError(f"{folder} names {name!r} as its {kind} token, which its vocabulary does not hold")
        return found
    value = generation.get(f"{kind}_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and backend.id_to_token(value) is not None else None


def read_chat_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    """Read ``chat_template.jinja``, else the template in the tokenizer's config (of several the one named ``default``).

    Raises:
        CheckpointError: it cannot be read, or is no text.
    """
    try:
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / TEMPLATE_FILE} cannot be read: {_line(error)}") from None
    found = named.get("chat_template")
    if isinstance(found, list):  # several, each with a name
        several = {str(one.get("name")): one.get("template") for one in found if isinstance(one, Mapping)}
        found = several.get("default")
    if found is None or isinstance(found, str):
        return found
    raise CheckpointError(f"the chat template in {folder} is no text, but a {type(found).__name__}")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in ``file``; empty where there is no file.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {_line(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not a {type(values).__name__}")
    return values


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
