"""A small tokenizer of the Llama 2 kind: dummy prefix, byte fallback, a template that adds ``<s>``."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors


def llama_like(folder: Path) -> Path:
    """Write its ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``: <unk> 0, <s> 1, </s> 2, <pad> 3."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    letters = "▁abcdefghijklmnopqrstuvwxyz.?!:"
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("o", "n"), ("c", "e"), ("▁", "on"), ("▁on", "ce"), ("▁", "▁")]
    pieces = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
