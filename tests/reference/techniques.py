"""Examples of every registered technique, for the shared laws, and what the laws share."""

from __future__ import annotations

import torch

from limbeck.data.batch import Batch
from limbeck.kernels.packed import dispatch
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import LogSparse, Sliding
from limbeck.techniques.awq import AWQ
from limbeck.techniques.depth import Depth
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid
from limbeck.techniques.hqq import HQQ
from limbeck.techniques.lora import LoRA
from limbeck.techniques.mixed import Mixed
from limbeck.techniques.qat import QAT
from limbeck.techniques.rotate import Rotate
from limbeck.techniques.rtn import RTN
from limbeck.techniques.sparse_attention import SparseAttention
from limbeck.techniques.technique import Technique
from tests.reference.twins import gpt2_config, llama_config, random_decoder

__all__ = ["BASES", "EXAMPLES", "base", "calibration", "logits", "plain_batch", "shake"]

BASES: dict[str, DecoderConfig] = {
    "gpt2": gpt2_config(layers=4),
    "llama": llama_config(layers=4),
}

EXAMPLES: dict[str, list[Technique]] = {
    "freeze": [
        Freeze(),
        Freeze(count=3),
        Freeze(train="half"),
        Freeze(train="no_embeddings"),
        Freeze(train=("norm", "blocks.1", "*.down.weight")),
    ],
    "lora": [
        LoRA(rank=2),
        LoRA(rank=3, split=False, scaling="rslora", alpha=4.0),
        LoRA(rank=1, targets=("q", "v", "down"), init="gaussian", dropout=0.1),
        LoRA(rank=2, targets=("attention", "blocks.1.ffn.*"), ranks={"v": 4, "down": 1}, alphas={"q": 3.0}),
        LoRA(rank=2, targets="all", merge="never"),
        LoRA(rank=2, targets=("head", "mlp"), untie=True, merge="always"),
        LoRA(rank=2, targets=("head",), merge="never"),
    ],
    "depth": [
        Depth(layers=2),
        Depth(layers=3, rule="first_last"),
        Depth(layers=2, rule="importance"),
        Depth(layers=(0, 1, 3)),
        Depth(layers=1),
    ],
    "rotate": [Rotate(untie=True), Rotate(untie=True, values=False, seed=3)],
    "rtn": [
        RTN(bits=4),
        RTN(bits=8, embeddings=False, clip="search"),
        RTN(grid=Grid(format="nf4"), overrides={"up": Grid(format="int3"), "out": Grid(format="int6")}),
        RTN(grid=Grid(format="q4_1"), overrides={"up": None, "qkv": Grid(format="fp8_e4m3")}),
    ],
    "awq": [AWQ(bits=4), AWQ(grid=Grid(format="int4", symmetric=False), steps=3, overrides={"up": None})],
    "gptq": [GPTQ(bits=4), GPTQ(grid=Grid(format="int4", granularity="channel"), act_order=False)],
    "hqq": [HQQ(bits=4), HQQ(bits=3, overrides={"up": None})],
    "qat": [QAT(bits=4), QAT(grid=Grid(format="int8", symmetric=False)), QAT(bits=4, learned_scales=True)],
    "mixed": [
        Mixed(average_bits=6, overrides={"up": Grid(format="int8"), "*": Grid(format="int4")}),
        Mixed(average_bits=12, candidates=(Grid(format="int8"),)),
    ],
    "sparse_attention": [
        SparseAttention(pattern=LogSparse(window=2, sinks=1)),
        SparseAttention(pattern=Sliding(window=3), keep_first=1, keep_every=3),
        SparseAttention(pattern=LogSparse(window=1), budget=0.5),
    ],
}
"""Name -> settings that the laws run over; a technique without any fails ``test_every_technique``."""


def base(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    return random_decoder(BASES[name], seed=seed, scale=0.1, dtype=dtype)


def plain_batch(vocab: int = 61, rows: int = 3, length: int = 10, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (rows, length), generator=generator)
    return Batch.of_ids(ids, [length - i for i in range(rows)])


def calibration() -> list[Batch]:
    return [plain_batch(seed=s) for s in range(2, 8)]


@torch.no_grad()
def logits(model: Decoder, batch: Batch | None = None) -> torch.Tensor:
    with dispatch("reference"):  # quantized weights answer alike whatever the number of rows
        return model.eval()(plain_batch() if batch is None else batch)


@torch.no_grad()
def shake(model: Decoder, scale: float = 0.05, seed: int = 5) -> None:
    """Move what is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
