"""Small trained tokenizers of both kinds, made in a moment."""

from __future__ import annotations

import functools

import tokenizers
from tokenizers import decoders, models, normalizers

from limbeck.data.tokenizer import Tokenizer

__all__ = ["byte_level", "metaspace"]

_TEXT = "the cat sat on the mat and the dog ran to the end of the road. été à la mer, 🌊 naïve café. "


@functools.cache
def byte_level(vocab_size: int = 280) -> Tokenizer:
    """A byte-level BPE in which most characters beyond ASCII are several tokens."""
    return Tokenizer.train([_TEXT] * 3, vocab_size)


@functools.cache
def metaspace() -> Tokenizer:
    """Like Llama's: a space before the first word, bytes as <0x..> where a character is unknown."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁a", "th", "e▁"]:
        vocabulary.setdefault(piece, len(vocabulary))
    model = models.BPE(vocabulary, [("▁", "a"), ("t", "h")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, eos_id=2, bos_id=1, begins_with_bos=True)
