"""The tokenizer of a GGUF file: the way back from ``gguf_tokenizer``.

Two kinds are read: ``gpt2`` (byte-level BPE by merges, with a pre-tokenizer known by name) and ``llama`` (SentencePiece
with scores, from which merges are made).
"""

from __future__ import annotations

import json
import re
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import processors

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError
from limbeck.formats.gguf_file import GgufFile
from limbeck.formats.gguf_tokenizer import SPACE, pre_tokenizer

__all__ = ["end_ids", "read_tokenizer"]

_Type = gguf.TokenType
_PADDING = re.compile(r"\[PAD\d+\]")
_ENDS = ("eos", "eot", "eom")
_BEGINS = {"llama"}  # kinds of tokenizers, and names of pre-tokenizers, that put a begin token first unless told not to
_NAMED = {"unk": "unknown", "pad": "padding"}  # as llama.cpp spells the keys


def end_ids(file: GgufFile) -> int | list[int] | None:
    """Return every id that ends a text: one, or a list; the end of a document first."""
    found = [i for name in _ENDS if (i := _id(file, name)) is not None]
    distinct = list(dict.fromkeys(found))
    return distinct[0] if len(distinct) == 1 else distinct or None


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Build the tokenizer that ``file`` describes.

    Raises:
        ModelError: a kind or a pre-tokenizer that is not known, or a vocabulary that contradicts itself.
    """
    kind = file.values.get("tokenizer.ggml.model")
    tokens = file.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or kind not in ("gpt2", "llama"):
        shown = f"a tokenizer of the kind {kind!r}" if kind else "no tokenizer"
        raise ModelError(f"{file.path} has {shown}: supported are gpt2 (byte-level BPE) and llama (SentencePiece)")
    types = _types(file, len(tokens))
    ids = {t: i for i, t in enumerate(tokens) if not (types[i] == _Type.UNUSED and _PADDING.fullmatch(t))}
    pre = str(file.values.get("tokenizer.ggml.pre", "default"))
    described = _byte_level(file, ids, pre) if kind == "gpt2" else _sentencepiece(file, tokens, types, ids)
    described["added_tokens"] = _added(tokens, types, ids)
    backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    begin, end = _id(file, "bos"), _id(file, "eos")
    if end is None:
        raise ModelError(f"{file.path} names no end token (tokenizer.ggml.eos_token_id)")
    adds = file.values.get("tokenizer.ggml.add_bos_token", kind in _BEGINS or pre in _BEGINS)
    adds = bool(adds) and begin is not None
    if adds and begin is not None:
        piece = tokens[begin]
        backend.post_processor = processors.TemplateProcessing(
            single=[piece, "$A"], pair=[piece, "$A", piece, "$B"], special_tokens=[(piece, begin)]
        )
    template = file.values.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        eos_id=end,
        bos_id=begin,
        pad_id=_id(file, "pad"),
        begins_with_bos=adds,
        chat_template=template if isinstance(template, str) else None,
    )


def _id(file: GgufFile, name: str) -> int | None:
    """Id of a special token, where the file names one within its vocabulary."""
    value = file.values.get(f"tokenizer.ggml.{_NAMED.get(name, name)}_token_id")
    tokens = file.values.get("tokenizer.ggml.tokens", [])
    return int(value) if isinstance(value, int) and 0 <= value < len(tokens) else None


def _types(file: GgufFile, count: int) -> list[int]:
    types = file.values.get("tokenizer.ggml.token_type")
    if types is None:
        return [int(_Type.NORMAL)] * count
    if not isinstance(types, np.ndarray) or len(types) != count:
        raise ModelError(f"{file.path} gives not one token_type a token")
    return [int(t) for t in types]


def _added(tokens: list[str], types: list[int], ids: dict[str, int]) -> list[dict[str, Any]]:
    """Control tokens, which are special, and the user's own, which are not."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = (_Type.CONTROL, _Type.UNKNOWN)
    return [
        {"id": i, "content": token, "special": types[i] in special, **plain}
        for i, token in enumerate(tokens)
        if (types[i] in special or types[i] == _Type.USER_DEFINED) and ids.get(token) == i
    ]


def _byte_level(file: GgufFile, ids: dict[str, int], pre: str) -> dict[str, Any]:
    found = pre_tokenizer(pre)
    if found is None:
        raise ModelError(f"{file.path} cuts texts by the pre-tokenizer '{pre}', which is not known here")
    steps, normalizer, ignore_merges = found
    merges = file.values.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelError(f"{file.path} has no merges for its byte-level tokenizer")
    pairs = [m.partition(" ")[::2] if not m.startswith(" ") else (m[0] + m[1:].partition(" ")[0], "") for m in merges]
    unfit = next((p for p in pairs if p[0] not in ids or p[1] not in ids or p[0] + p[1] not in ids), None)
    if unfit is not None:
        raise ModelError(f"{file.path} merges '{unfit[0]}' and '{unfit[1]}', which are not all in its vocabulary")
    return {
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": steps,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": pairs, "ignore_merges": ignore_merges, "fuse_unk": False,
                  "byte_fallback": False, "dropout": None, "unk_token": None,  # nosec B105 - a token of text
                  "continuing_subword_prefix": None, "end_of_word_suffix": None},
    }  # fmt: skip


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int], ids: dict[str, int]) -> dict[str, Any]:
    scores = file.values.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise ModelError(f"{file.path} gives not one score a token")
    prefix = bool(file.values.get("tokenizer.ggml.add_space_prefix", True))
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _Type.UNKNOWN), None)
    bytes_known = any(kind == _Type.BYTE for kind in types)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoded = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
               {"type": "Fuse"}]  # fmt: skip
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*before, replaced]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoded, *after]},
        "model": {"type": "BPE", "vocab": ids, "merges": _merges(tokens, types, scores), "ignore_merges": False,
                  "fuse_unk": True, "byte_fallback": bytes_known, "dropout": None, "unk_token": unknown,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None},
    }  # fmt: skip


def _merges(tokens: list[str], types: list[int], scores: Any) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the best score first: what SentencePiece merges, in its order."""
    normal = {t: i for i, t in enumerate(tokens) if types[i] == _Type.NORMAL}
    found = [
        (-float(scores[i]), i, at, (piece[:at], piece[at:]))
        for piece, i in normal.items()
        for at in range(1, len(piece))
        if piece[:at] in normal and piece[at:] in normal
    ]
    return [pair for *_, pair in sorted(found)]
