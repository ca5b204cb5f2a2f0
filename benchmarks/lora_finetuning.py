"""LoRA of rank 8 on attention and MLP, four sequences of 256 tokens a step, against peft on transformers."""

from __future__ import annotations

from typing import Any

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import OURS, THEIRS, plain_loop, train_ours
from harness.turns import main
from harness.worker import Turn

RATE = 1e-3


def same_start(model: Any, part: str) -> None:
    """Give the adapters' A, which both sides draw at random, equal values layer by layer."""
    import torch

    named = [p for name, p in model.named_parameters() if part in name]
    for i, p in enumerate(named):
        torch.nn.init.normal_(p, 0.0, 0.02, generator=torch.Generator().manual_seed(i))


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (2, 24)) if quick else (GPT2, (4, 256))

    def limbeck(turn: Turn) -> None:
        turn.imports(*OURS, "limbeck.techniques.lora")
        from limbeck.data.batch import Batch
        from limbeck.objectives.next_token import NextToken
        from limbeck.techniques.lora import LoRA

        model = LoRA(rank=8, alpha=16, split=False).apply(ours(shape))
        same_start(model, "lora_a")
        train_ours(turn, model, NextToken(), [Batch.of_ids(random_ids(shape, *size))], RATE)

    def peer(turn: Turn, dtype: str = "float32", compiled: bool = False) -> None:
        turn.imports(*THEIRS, "peft")
        import peft
        import torch

        options = peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
        )
        model = peft.get_peft_model(theirs(shape, dtype), options)
        same_start(model, "lora_A")
        ids = random_ids(shape, *size)
        called = torch.compile(model) if compiled else model

        def loss(_: int):
            value = called(input_ids=ids, labels=ids).loss
            return value, {"nll": value}

        plain_loop(turn, model, loss, [ids.numel()], RATE)

    return Claim(
        name="lora_finetuning",
        title="LoRA",
        setting=f"{shape.words()}; rank 8 on attention and MLP, one adapter for q, k and v as peft has it; {size[0]} x "
        f"{size[1]} random tokens, random weights, bf16, AdamW, clipping",
        arms=(
            Arm("peft", peer, "system", "fp32 base under bf16 autocast, as users run it"),
            Arm("peft, freed memory kept", peer, "keep"),
            Arm("peft, bf16 base, freed memory kept", lambda turn: peer(turn, "bfloat16"), "keep", "its best settings"),
            Arm(
                "peft, bf16 base, compiled, freed memory kept", lambda turn: peer(turn, "bfloat16", True), "keep",
                "its best settings",
            ),
            Arm("Limbeck", limbeck),
        ),
        bars=tuple(
            bar
            for against in ("peft", "peft, freed memory kept", "peft, bf16 base, freed memory kept")
            for bar in (Bar("Limbeck", against, "speed", 2.0), Bar("Limbeck", against, "peak", 0.6))
        ),
        equal={"nll": 2e-3},
    )  # fmt: skip


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
