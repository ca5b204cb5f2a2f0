"""How the cost of full fine-tuning grows with the vocabulary, beside transformers."""

from __future__ import annotations

from dataclasses import replace

from full_finetuning import limbeck, transformers
from harness.claim import Arm, Claim
from harness.shapes import GPT2, TINY, Shape
from harness.turns import main

VOCABULARIES = (8192, 16384, 32768, 65536, 131072)


def shapes(quick: bool) -> list[Shape]:
    if quick:
        return [replace(TINY, vocabulary=v) for v in (128, 256)]
    return [replace(GPT2, vocabulary=v) for v in VOCABULARIES]


def claim(quick: bool) -> Claim:
    size = (2, 24) if quick else (4, 256)
    arms: list[Arm] = []
    for shape in shapes(quick):
        v = shape.vocabulary
        arms.append(Arm(f"transformers, {v}", lambda turn, shape=shape: transformers(turn, shape, size)))
        arms.append(Arm(f"Limbeck, {v}", lambda turn, shape=shape: limbeck(turn, shape, size)))
    some = shapes(quick)[0]
    return Claim(
        name="growth_vocabulary",
        title="Growth with the vocabulary",
        setting=f"{some.layers} layers, {some.width} wide; full fine-tuning as above, {size[0]} x {size[1]} tokens a "
        "step, freed memory kept",
        arms=tuple(arms),
        rounds=2,
        steps=1,
        warmup=1,
        apart=True,
        axis="words of the vocabulary",
    )


if __name__ == "__main__":
    main(__file__, claim, shapes)
