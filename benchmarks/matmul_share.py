"""How much of the machine's own bf16 matmul rate full fine-tuning reaches."""

from __future__ import annotations

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids
from harness.training import OURS, train_ours
from harness.turns import main
from harness.worker import Turn


def claim(quick: bool) -> Claim:
    shape, size, side = (TINY, (2, 24), 256) if quick else (GPT2, (4, 256), 2048)

    def limbeck(turn: Turn) -> None:
        turn.imports(*OURS)
        from limbeck.data.batch import Batch
        from limbeck.objectives.next_token import NextToken

        model = ours(shape)
        # a token sees half of its row on average; the backward costs twice the forward
        flops = 3 * model.flops_per_token(size[1] // 2)
        ids = random_ids(shape, *size)
        train_ours(lambda tokens, told: turn(tokens * flops / 1e9, told), model, NextToken(), [Batch.of_ids(ids)])

    def matmul(turn: Turn) -> None:
        turn.imports("torch")
        import torch

        a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
        while True:
            for _ in range(20):
                c = a @ b
            turn(20 * 2 * side**3 / 1e9, {"largest": float(c.abs().max())})

    return Claim(
        name="matmul_share",
        title="Share of the bf16 matmul rate",
        setting=f"{shape.words()}; full fine-tuning as above, its matrix products and attention scores counted, "
        f"against {side} x {side} x {side} in bf16 by torch",
        arms=(Arm("matmul alone", matmul), Arm("Limbeck", limbeck)),
        bars=(Bar("Limbeck", "matmul alone", "speed", 0.5),),
        unit="GFLOP/s",
    )


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
