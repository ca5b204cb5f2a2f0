"""Reading a prompt of 1,000 tokens: Limbeck's numbers beside transformers' and llama.cpp's."""

from __future__ import annotations

from harness.claim import Bar, Claim
from harness.decoding import arms
from harness.shapes import GPT2, Shape
from harness.turns import main

SMALL = Shape(layers=2, width=32, heads=2, vocabulary=320, context=128)


def claim(quick: bool) -> Claim:
    shape, prompt = (SMALL, 100) if quick else (GPT2, 1000)
    return Claim(
        name="prefill",
        title="Reading a prompt",
        setting=f"{shape.words()}, random weights; {prompt} tokens at once, logits of the last",
        arms=arms(shape, 0, prompt),
        bars=(
            Bar("Limbeck bf16", "llama.cpp F16", "speed", 4.0),
            Bar("Limbeck int8", "llama.cpp Q8_0", "speed", 3.5),
            Bar("Limbeck int4", "llama.cpp Q4_0", "speed", 3.5),
            Bar("Limbeck bf16", "transformers bf16", "speed", 1.3),
        ),
        rounds=7,
        steps=1,
        warmup=1,
        equal={"nll": 0.02},
    )


def shapes(quick: bool) -> list[Shape]:
    return [SMALL if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
