"""Generating for sixteen sequences together in bf16, against transformers."""

from __future__ import annotations

from harness.claim import Arm, Bar, Claim
from harness.decoding import PROMPT, limbeck, transformers
from harness.shapes import GPT2, Shape
from harness.turns import main

SMALL = Shape(layers=2, width=32, heads=2, vocabulary=320, context=128)


def claim(quick: bool) -> Claim:
    shape, new, rows = (SMALL, 8, 4) if quick else (GPT2, 64, 16)
    return Claim(
        name="decode_batch",
        title="Decoding, sixteen sequences",
        setting=f"{shape.words()}, random weights in bf16; {rows} sequences, {new} tokens each greedily after {PROMPT}",
        arms=(
            Arm("transformers bf16", transformers(shape, "bfloat16", rows, new), "system", "eager"),
            Arm("Limbeck bf16", limbeck(shape, "bf16", rows, new)),
        ),
        bars=(Bar("Limbeck bf16", "transformers bf16", "speed", 1.5),),
        rounds=7,
        steps=1,
        warmup=1,
        equal={"nll": 0.02},
    )


def shapes(quick: bool) -> list[Shape]:
    return [SMALL if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
