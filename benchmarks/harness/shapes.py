"""Models of one shape with equal random weights on both sides, and tokens at random."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.model.decoder import Decoder

__all__ = ["GPT2", "TINY", "Shape", "ours", "random_ids", "theirs", "write_weights"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-2 of this size. Dropout is 0 on both sides, so that both compute the same."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024

    def words(self) -> str:
        """For people."""
        return f"{self.layers} layers, {self.width} wide, vocabulary {self.vocabulary:,}"

    def folder(self) -> Path:
        """Where its weights lie while a benchmark runs."""
        return Path(os.environ["LIMBECK_BENCH_WEIGHTS"]) / "-".join(map(str, asdict(self).values()))


GPT2 = Shape()
TINY = Shape(layers=2, width=32, heads=2, vocabulary=211, context=128)


def write_weights(shape: Shape) -> None:
    """Write ``shape`` with random weights in the Hugging Face layout; every bias and gain of a norm is random too."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(20)
    config = GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=shape.vocabulary - 1, eos_token_id=shape.vocabulary - 1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.02 * torch.randn_like(p))
    model.save_pretrained(shape.folder())


def theirs(shape: Shape, dtype: str = "float32", **options: Any) -> Any:
    """The model as transformers loads it, in training mode."""
    import torch
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(shape.folder(), dtype=getattr(torch, dtype), **options).train()


def ours(shape: Shape, dtype: str = "float32") -> Decoder:
    """The model as Limbeck loads it."""
    import torch

    from limbeck.formats import huggingface
    from limbeck.formats.weights import read_json

    folder = shape.folder()
    return huggingface.read_model(folder, read_json(folder / "config.json"), getattr(torch, dtype), "cpu")


def random_ids(shape: Shape, *size: int, seed: int = 0) -> Tensor:
    """Token ids of ``size``."""
    import torch

    return torch.randint(shape.vocabulary - 1, size, generator=torch.Generator().manual_seed(seed))
