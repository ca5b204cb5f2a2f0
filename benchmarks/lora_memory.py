"""Peak memory of one training step of GPT-2 Large: full fine-tuning and half-frozen against LoRA.

System A's claim was 12.8 GB against 3.3 GB with under 0.2 % trainable. Random weights, fp32, AdamW.
"""

from __future__ import annotations

from typing import Any

from harness.claim import Arm, Bar, Claim
from harness.shapes import TINY, Shape, random_ids
from harness.training import OURS, train_ours
from harness.turns import main
from harness.worker import Turn

LARGE = Shape(layers=36, width=1280, heads=20)
FULL: tuple[str, list[dict[str, object]]] = ("full fine-tuning", [])
HALF: tuple[str, list[dict[str, object]]] = ("half-frozen", [{"kind": "freeze", "train": "half"}])


def lora(rank: int, *targets: str) -> tuple[str, list[dict[str, object]]]:
    """Name and techniques of a row."""
    where = " and ".join(targets) or "attention and MLP"
    return f"LoRA r{rank} on {where}", [{"kind": "lora", "rank": rank} | ({"targets": targets} if targets else {})]


def step(turn: Turn, shape: Shape, size: tuple[int, int], techniques: list[dict[str, object]]) -> None:
    turn.imports(*OURS, "limbeck.techniques.table")
    import torch
    from pydantic import TypeAdapter

    from limbeck.data.batch import Batch
    from limbeck.model.config import DecoderConfig
    from limbeck.model.decoder import Decoder
    from limbeck.objectives.next_token import NextToken
    from limbeck.techniques.table import AnyTechnique
    from limbeck.techniques.technique import apply_all

    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(
            vocab_size=shape.vocabulary, context=shape.context, layers=shape.layers, hidden_size=shape.width,
            heads=shape.heads,
        )
    )  # fmt: skip
    model = apply_all(TypeAdapter(tuple[AnyTechnique, ...]).validate_python(techniques), model)
    share = model.count_parameters(trainable=True) / model.count_parameters()

    def named(tokens: float, losses: Any) -> None:
        turn(tokens, {**losses, "trainable share": share})

    train_ours(named, model, NextToken(), [Batch.of_ids(random_ids(shape, *size))], precision="fp32")


def memory_claim(
    name: str, shape: Shape, size: tuple[int, int], rows: list[tuple[str, list[dict[str, object]]]]
) -> Claim:
    """Full fine-tuning in the first row, and every other row against it."""
    return Claim(
        name=name,
        title=f"Memory of LoRA, {shape.layers} layers of {shape.width}",
        setting=f"{shape.words()}; {size[0]} x {size[1]} random tokens, random weights, fp32, AdamW, one step",
        arms=tuple(
            Arm(row, lambda turn, techniques=techniques: step(turn, shape, size, techniques))
            for row, techniques in rows
        ),
        bars=tuple(Bar(row, rows[0][0], "peak") for row, _ in rows[1:]),
        rounds=1,
        steps=1,
        warmup=1,
        apart=True,
    )


def claim(quick: bool) -> Claim:
    rows = [FULL, HALF, lora(8, "q", "v"), lora(8)]
    return memory_claim("lora_memory", TINY if quick else LARGE, (1, 24) if quick else (1, 256), rows)


def shapes(quick: bool) -> list[Shape]:
    return []


if __name__ == "__main__":
    main(__file__, claim, shapes)
