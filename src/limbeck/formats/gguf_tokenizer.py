"""A tokenizer as GGUF metadata: byte-level BPE by its merges, the SentencePiece kind by scores.

llama.cpp does not read pre-tokenizer and normalizer from a file: it knows some by name. A tokenizer that is none of
those would be cut otherwise in silence, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError

__all__ = ["SPACE", "Vocabulary", "add_vocabulary", "pre_tokenizer", "vocabulary"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _REST

_GPT2_SPLIT = ("bytes", True)
_NAMES: Mapping[tuple[Any, ...], str] = {
    (_GPT2_SPLIT,): "gpt-2",
    (("digits", True), _GPT2_SPLIT): "smollm",
    (("split", _LLAMA3), ("bytes", False)): "llama-bpe",
    (("split", _QWEN2), ("bytes", False)): "qwen2",
}
"""Steps of a pre-tokenizer -> what llama.cpp calls it."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "gpt-2": ("gpt2", "phi-2", "mpt", "olmo"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "smaug-bpe"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen"),
}
"""Names under which llama.cpp cuts texts in the same way."""

_IGNORES_MERGES = {"llama-bpe"}  # takes a word that is in the vocabulary whole, as llama.cpp does under this name
SPACE = "\u2581"
"""SentencePiece's mark of a space."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says of its tokenizer.

    Attributes:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece's BPE with bytes as fallback).
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: (V,) spellings, one a row of the embedding.
        types: (V,) values of ``gguf.TokenType``.
        merges: ``a b`` in order of rank; None for ``llama``.
        scores: (V,) the higher is merged first; None for ``gpt2``.
        space_prefix: a space is put before a text.
        unknown: id of the unknown token, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    space_prefix: bool
    unknown: int | None


def vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """Say ``tokenizer`` in GGUF's terms; rows of the embedding beyond it become unused tokens.

    Raises:
        ModelError: llama.cpp has no name for the way it cuts a text.
    """
    structure = tokenizer.structure
    model = structure["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(f"GGUF holds plain byte-pair tokenizers, not this {model['type']}: export to huggingface")
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    bytes_as_pieces = bool(model.get("byte_fallback"))
    tokens, types = _tokens(tokenizer, rows, bytes_as_pieces)
    unknown = tokenizer.vocabulary.get(model.get("unk_token") or "")
    if not bytes_as_pieces:
        pre = _named(structure)
        return Vocabulary("gpt2", pre, tokens, types, [" ".join(p) for p in pairs], None, False, unknown)
    _check_closed(tokenizer, set(pairs))
    scores = _scores(tokens, types, ["".join(p) for p in pairs])
    return Vocabulary("llama", "default", tokens, types, None, scores, _space_prefix(structure), unknown)


def _tokens(tokenizer: Tokenizer, rows: int, bytes_as_pieces: bool) -> tuple[list[str], list[int]]:
    """Spelling and type of every row."""
    kind = gguf.TokenType
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [int(kind.UNUSED)] * rows
    for piece, i in tokenizer.vocabulary.items():
        tokens[i], types[i] = piece, int(kind.NORMAL)
    for added in tokenizer.structure["added_tokens"]:
        types[added["id"]] = int(kind.CONTROL if added["special"] else kind.USER_DEFINED)
    if bytes_as_pieces:
        for i in tokenizer.byte_ids:
            types[i] = int(kind.BYTE)
        unknown = tokenizer.vocabulary.get(tokenizer.structure["model"].get("unk_token") or "")
        if unknown is not None:
            types[unknown] = int(kind.UNKNOWN)
    return tokens, types


def _check_closed(tokenizer: Tokenizer, pairs: set[tuple[str, ...]]) -> None:
    """SentencePiece merges any two pieces that make a third; so must this tokenizer, or the two cut texts differently.

    Raises:
        ModelError: it has two pieces that make a third, but no merge for them.
    """
    known, special = tokenizer.vocabulary, tokenizer.special_ids | tokenizer.byte_ids
    plain = {piece for piece, i in known.items() if i not in special}
    for piece in plain:
        for at in range(1, len(piece)):
            if (parts := (piece[:at], piece[at:])) not in pairs and plain.issuperset(parts):
                raise ModelError(
                    f"this tokenizer has the pieces '{parts[0]}', '{parts[1]}' and '{piece}' but does not merge them, "
                    "as llama.cpp would: export to huggingface"
                )


def _scores(tokens: list[str], types: list[int], merged: list[str]) -> list[float]:
    """SentencePiece's scores of a BPE, from the merges that were made of them: minus the rank of the first to give a
    piece, letters after all pieces, 0 for what is never merged.
    """
    rank: dict[str, int] = {}
    for i, piece in enumerate(merged):
        rank.setdefault(piece, i)
    normal = int(gguf.TokenType.NORMAL)
    return [
        -float(rank.get(token, len(merged))) if kind == normal else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _named(structure: Mapping[str, Any]) -> str:
    steps = tuple(_steps(structure["pre_tokenizer"]))
    pre = _NAMES.get(steps)
    normalizer = (structure["normalizer"] or {}).get("type")
    # llama.cpp normalizes nothing; Qwen2's NFC, which its own converter passes over too, changes rare texts alone
    plain = normalizer is None or (pre == "qwen2" and normalizer == "NFC")
    ignores = bool(structure["model"].get("ignore_merges"))
    if pre is None or not plain or ignores != (pre in _IGNORES_MERGES):
        known = ", ".join(_NAMES.values())
        raise ModelError(
            f"this tokenizer cuts texts in a way that llama.cpp has no name for (known here: {known}): "
            "export to huggingface"
        )
    return pre


def pre_tokenizer(name: str) -> tuple[dict[str, Any], dict[str, Any] | None, bool] | None:
    """Return what llama.cpp calls ``name``, as ``tokenizer.json`` says it.

    Returns:
        The pre-tokenizer, the normalizer and whether merges are ignored for whole words; None for an unknown name.
    """
    usual = next((known for known, others in _ALIASES.items() if name in (known, *others)), None)
    steps = next((steps for steps, known in _NAMES.items() if known == usual), None)
    if steps is None:
        return None
    parts = [_described(kind, value) for kind, value in steps]
    whole = parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}
    return whole, {"type": "NFC"} if usual == "qwen2" else None, usual in _IGNORES_MERGES


def _described(kind: str, value: Any) -> dict[str, Any]:
    if kind == "bytes":
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": value}
    if kind == "digits":
        return {"type": "Digits", "individual_digits": value}
    return {"type": "Split", "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}


def _steps(described: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Yield a pre-tokenizer's plain steps; what is not known here comes out under its own type, and matches no name."""
    if described is None:
        return
    kind = described["type"]
    if kind == "Sequence":
        for inner in described["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "ByteLevel" and not described["add_prefix_space"]:
        yield "bytes", described["use_regex"]
    elif kind == "Digits":
        yield "digits", described["individual_digits"]
    elif kind == "Split" and described["behavior"] == "Isolated" and not described["invert"]:
        yield "split", described["pattern"].get("Regex")
    else:
        yield kind, None


def _space_prefix(structure: Mapping[str, Any]) -> bool:
    """Return whether a text gets a space before it, by Llama's normalizer or by a Metaspace pre-tokenizer.

    Raises:
        ModelError: something else is done to texts.
    """
    normalizer, pre = structure["normalizer"], structure["pre_tokenizer"]
    steps = normalizer["normalizers"] if (normalizer or {}).get("type") == "Sequence" else [normalizer]
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is None and steps in ([{"type": "Prepend", "prepend": SPACE}, replaced], [replaced]):
        return len(steps) == 2
    if normalizer is None and (pre or {}).get("type") == "Metaspace" and pre["replacement"] == SPACE:
        if not pre.get("split", True):
            return bool(pre["prepend_scheme"] != "never")
    raise ModelError("this tokenizer treats spaces in a way that llama.cpp has no name for: export to huggingface")


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int, generation: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write every key of the tokenizer, the chat template and the end ids.

    Args:
        writer: of the file.
        tokenizer: the tokenizer.
        rows: of the embedding.
        generation: values of generation_config.json.

    Returns:
        What the file cannot hold, a sentence each.

    Raises:
        ModelError: llama.cpp has no name for the way it cuts a text.
    """
    v = vocabulary(tokenizer, rows)
    writer.add_tokenizer_model(v.model)
    writer.add_tokenizer_pre(v.pre)
    writer.add_token_list(v.tokens)
    writer.add_token_types(v.types)
    if v.merges is not None:
        writer.add_token_merges(v.merges)
    if v.scores is not None:
        writer.add_token_scores(v.scores)
        writer.add_add_space_prefix(v.space_prefix)
    # without a begin token llama.cpp would take GPT-2's id 11 for one
    writer.add_bos_token_id(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if v.unknown is not None:
        writer.add_unk_token_id(v.unknown)
    writer.add_add_bos_token(tokenizer.begins_with_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    return (*_add_ends(writer, tokenizer), *_unsaid(generation))


def _add_ends(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Write up to three end ids: llama.cpp stops at the end of a text, of a turn and of a message."""
    ends = tokenizer.end_ids
    for add, i in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        add(i)
    over = ", ".join(str(i) for i in ends[3:])
    told = f"the end ids {over} are not in the file, which holds three: generation does not stop at them"
    return (told,) if over else ()


def _unsaid(generation: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the defaults of sampling, which each program that runs the file sets for itself."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    left = sorted(k for k, value in generation.items() if k not in ids and value not in (None, False))
    told = f"the generation settings {', '.join(left)} have no place in the file: set them where it is run"
    return (told,) if left else ()
