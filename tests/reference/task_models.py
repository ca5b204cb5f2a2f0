"""A tokenizer that knows the tasks' words, and small models on it."""

from __future__ import annotations

import functools
from typing import Any

import torch

from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder

__all__ = ["class_rows", "small", "tokenizer"]


@functools.cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE trained on toy judgements; " yes", " no", " positive" and " negative" are tokens of it."""
    texts = [str(v) for name in ("sentiment", "paraphrase") for r in toy_rows(name, size=60) for v in r.fields.values()]
    return Tokenizer.train([*texts, *["Sentiment: yes no positive negative paraphrase of Answer:"] * 30], 400)


def small(**over: Any) -> Decoder:
    """Two layers, 16 wide, every bias and norm random."""
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "vocab_size": tokenizer().vocab_size,
        "context": 128,
        "layers": 2,
        "hidden_size": 16,
        "heads": 2,
    }
    model = Decoder(DecoderConfig(**{**config, **over}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def class_rows(labels: list[Any], field: str = "label", words: str = "the plot was good") -> Rows:
    """One row a label, each sentence another."""
    return Rows.of((Row(f"r{i}", {"sentence": f"{words} {i}", field: c}) for i, c in enumerate(labels)), "made")
