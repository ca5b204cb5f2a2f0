from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf import TokenType

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError
from limbeck.formats.gguf_tokenizer import vocabulary
from tests.reference.small_tokenizer import byte_level, metaspace
from tests.reference.spm import spm_encode
from tests.reference.tokenizers import llama_like

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
TEXTS = ("the once", "  once the  the", "on the, once? the: été\n", "", "zebra the")


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    """The same with other parts in its JSON; ``model`` is merged into the model's."""
    whole = dict(tokenizer.structure)
    whole["model"] = {**whole["model"], **parts.pop("model", {})}
    backend = tokenizers.Tokenizer.from_str(json.dumps({**whole, **parts}))
    return Tokenizer(backend, eos_id=tokenizer.eos_id, bos_id=tokenizer.bos_id)


def test_byte_level_merges_in_order() -> None:
    tokenizer = byte_level()
    v = vocabulary(tokenizer, 288)
    assert (v.model, v.pre, v.scores, v.unknown) == ("gpt2", "gpt-2", None, None)
    assert len(v.tokens) == len(v.types) == 288
    assert v.tokens[:280] == [tokenizer.piece(i) for i in range(280)]
    assert v.tokens[280:] == [f"[PAD{i}]" for i in range(280, 288)]
    assert v.types == [TokenType.CONTROL] + [TokenType.NORMAL] * 279 + [TokenType.UNUSED] * 8
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer.structure["model"]["merges"]]
    assert v.merges == merges and len(merges) == 280 - 257


def test_an_added_token_that_is_not_special_is_the_users(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens(["<think>"])
    v = vocabulary(Tokenizer(backend, eos_id=0), 281)
    assert v.tokens[280] == "<think>" and v.types[280] == TokenType.USER_DEFINED


@pytest.mark.parametrize(
    ("pre", "normalizer", "ignore", "name"),
    [
        (BYTES, None, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}, None, False,
         "smollm"),
        ({"type": "Sequence", "pretokenizers": [SPLIT, {**BYTES, "use_regex": False}]}, None, True, "llama-bpe"),
        ({"type": "Sequence", "pretokenizers": [
            {**SPLIT, "pattern": {"Regex": LLAMA3.replace("{1,3}", "")}}, {**BYTES, "use_regex": False}]},
         {"type": "NFC"}, False, "qwen2"),
    ],
)  # fmt: skip
def test_pre_tokenizers_by_name(pre: Any, normalizer: Any, ignore: bool, name: str) -> None:
    tokenizer = changed(byte_level(), pre_tokenizer=pre, normalizer=normalizer, model={"ignore_merges": ignore})
    assert vocabulary(tokenizer, 280).pre == name


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFC"}},
        {"model": {"ignore_merges": True}},
        {"model": {"end_of_word_suffix": "</w>"}},
    ],
)
def test_what_llama_cpp_has_no_name_for_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="export to huggingface"):
        vocabulary(changed(byte_level(), **parts), 280)


def test_scores_cut_texts_as_the_merges_do(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(llama_like(tmp_path))
    v = vocabulary(tokenizer, tokenizer.vocab_size)
    assert (v.model, v.pre, v.merges, v.space_prefix, v.unknown) == ("llama", "default", None, True, 0)
    assert v.types[:5] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert v.scores is not None
    for text in TEXTS:
        assert spm_encode(text, v.tokens, v.scores, v.space_prefix) == tokenizer.encode(text)


@pytest.mark.parametrize(("scheme", "prefix"), [("first", True), ("always", True), ("never", False)])
def test_metaspace_says_the_same(tmp_path: Path, scheme: str, prefix: bool) -> None:
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    tokenizer = changed(Tokenizer.load(llama_like(tmp_path)), normalizer=None, pre_tokenizer=space)
    v = vocabulary(tokenizer, tokenizer.vocab_size)
    assert v.space_prefix is prefix and v.scores is not None
    assert spm_encode("the once", v.tokens, v.scores, prefix) == tokenizer.encode("the once")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": None, "pre_tokenizer": None},
        {"normalizer": None, "pre_tokenizer": {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}},
    ],
)  # fmt: skip
def test_other_ways_with_spaces_are_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="treats spaces in a way"):
        vocabulary(changed(Tokenizer.load(llama_like(tmp_path)), **parts), 400)


def test_merges_that_sentencepiece_would_make_too_many_are_refused() -> None:
    with pytest.raises(ModelError, match="'e', '\u2581' and 'e\u2581' but does not merge them"):
        vocabulary(metaspace(), 400)


@pytest.mark.realdata
def test_the_tokenizer_of_stories260k(real_data: Path) -> None:
    tokenizer = Tokenizer.load(real_data / "stories260K")
    v = vocabulary(tokenizer, 512)
    assert v.scores is not None
    text = "Once upon a time, there was a little girl named Lily.  She said: \u201cno\u201d!\nThe end."
    assert spm_encode(text, v.tokens, v.scores, v.space_prefix) == tokenizer.encode(text)
