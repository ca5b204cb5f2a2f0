"""Full fine-tuning of GPT-2 small, four sequences of 256 tokens a step, against transformers under bf16 autocast."""

from __future__ import annotations

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import OURS, THEIRS, plain_loop, train_ours
from harness.turns import main
from harness.worker import Turn


def limbeck(turn: Turn, shape: Shape, size: tuple[int, int]) -> None:
    turn.imports(*OURS)
    from limbeck.data.batch import Batch
    from limbeck.objectives.next_token import NextToken

    train_ours(turn, ours(shape), NextToken(), [Batch.of_ids(random_ids(shape, *size))])


def transformers(turn: Turn, shape: Shape, size: tuple[int, int], compiled: bool = False) -> None:
    turn.imports(*THEIRS)
    import torch

    model = theirs(shape)
    ids = random_ids(shape, *size)
    called = torch.compile(model) if compiled else model

    def loss(_: int):
        value = called(input_ids=ids, labels=ids).loss
        return value, {"nll": value}

    plain_loop(turn, model, loss, [ids.numel()])


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (2, 24)) if quick else (GPT2, (4, 256))

    def peer(turn: Turn) -> None:
        transformers(turn, shape, size)

    return Claim(
        name="full_finetuning",
        title="Full fine-tuning",
        setting=f"{shape.words()}; {size[0]} x {size[1]} random tokens, random weights, bf16, AdamW, clipping",
        arms=(
            Arm("transformers", peer, "system", "bf16 autocast, fused AdamW, as users run it"),
            Arm("transformers, freed memory kept", peer, "keep"),
            Arm(
                "transformers, compiled, freed memory kept",
                lambda turn: transformers(turn, shape, size, True),
                "keep",
                "torch.compile",
            ),
            Arm("Limbeck", lambda turn: limbeck(turn, shape, size)),
        ),
        bars=(
            Bar("Limbeck", "transformers", "speed", 2.5),
            Bar("Limbeck", "transformers, freed memory kept", "speed", 1.7),
            Bar("Limbeck", "transformers", "peak", 0.75),
            Bar("Limbeck", "transformers", "above state", 0.4),
        ),
        equal={"nll": 2e-3},
    )


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
