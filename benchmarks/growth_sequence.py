"""How the cost of full fine-tuning grows with the length of the sequence, beside transformers."""

from __future__ import annotations

from dataclasses import replace

from full_finetuning import limbeck, transformers
from harness.claim import Arm, Claim
from harness.shapes import GPT2, TINY, Shape
from harness.turns import main

LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def lengths(quick: bool) -> tuple[int, ...]:
    return (16, 32) if quick else LENGTHS


def longest(quick: bool) -> Shape:
    return replace(TINY if quick else GPT2, context=lengths(quick)[-1])


def claim(quick: bool) -> Claim:
    shape, least = longest(quick), 64 if quick else 1024
    arms: list[Arm] = []
    for n in lengths(quick):
        size = (max(1, least // n), n)
        told = f"{size[0]} x {n} tokens"
        arms.append(Arm(f"transformers, {n}", lambda turn, size=size: transformers(turn, shape, size), remark=told))
        arms.append(Arm(f"Limbeck, {n}", lambda turn, size=size: limbeck(turn, shape, size), remark=told))
    return Claim(
        name="growth_sequence",
        title="Growth with the sequence",
        setting=f"{shape.words()}; full fine-tuning as above, {least:,} tokens a step or one sequence, freed "
        "memory kept",
        arms=tuple(arms),
        rounds=2,
        steps=1,
        warmup=1,
        apart=True,
        axis="tokens a sequence",
    )


def shapes(quick: bool) -> list[Shape]:
    return [longest(quick)]


if __name__ == "__main__":
    main(__file__, claim, shapes)
