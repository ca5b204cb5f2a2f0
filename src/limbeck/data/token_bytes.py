"""The bytes that each token of a vocabulary writes."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from limbeck.data.tokenizer import Tokenizer

__all__ = ["TokenBytes"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


class TokenBytes:
    """Tells which bytes a token adds to a text, so that those of several tokens together are the text in UTF-8.

    A special token is its own name. A vocabulary of the Llama 2 kind drops the space before a text's first word, which
    is kept here.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        structure = tokenizer.structure
        self._byte_level = "ByteLevel" in _kinds(structure.get("decoder"))
        self._added = {int(one["id"]): str(one["content"]) for one in structure.get("added_tokens") or ()}

    def __call__(self, token: int) -> bytes:
        """Return the bytes of a token; none for a padding row of the embedding."""
        if token in self._added:
            return self._added[token].encode()
        if token >= self._tokenizer.vocab_size:
            return b""
        piece = self._tokenizer.piece(token)
        if self._byte_level:
            table = _bytes_of_characters()
            if all(character in table for character in piece):
                return bytes(table[character] for character in piece)
            return piece.encode()
        found = _BYTE.fullmatch(piece)
        return bytes([int(found[1], 16)]) if found else piece.replace(_SPACE, " ").encode()

    def text(self, token: int) -> str:
        r"""Return the text of a token alone; bytes that are no UTF-8 as ``bytes:\xe2...``, as OpenAI's servers do."""
        spelled = self(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _kinds(described: Any) -> set[str]:
    """Types of a decoder and of those within it."""
    if not isinstance(described, dict):
        return set()
    inner = described.get("decoders") or ()
    return {str(described.get("type"))}.union(*(_kinds(one) for one in inner))


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
