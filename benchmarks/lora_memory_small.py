"""Peak memory of one training step of a 14M-parameter model by rank of its adapters: there LoRA saves nothing."""

from __future__ import annotations

from harness.claim import Claim
from harness.shapes import TINY, Shape
from harness.turns import main
from lora_memory import FULL, HALF, lora, memory_claim, shapes

SMALL = Shape(layers=6, width=384, heads=6, vocabulary=8192, context=512)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def claim(quick: bool) -> Claim:
    rows = [FULL, HALF, *(lora(rank) for rank in (RANKS[:2] if quick else RANKS))]
    return memory_claim("lora_memory_small", TINY if quick else SMALL, (2, 24) if quick else (8, 256), rows)


if __name__ == "__main__":
    main(__file__, claim, shapes)
