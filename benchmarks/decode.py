"""Generating one token after another, batch 1: Limbeck's numbers beside transformers' and llama.cpp's."""

from __future__ import annotations

from harness.claim import Bar, Claim
from harness.decoding import PROMPT, arms, claim_of, shape_of, shapes
from harness.turns import main


def claim(quick: bool) -> Claim:
    shape, new = shape_of(quick), 8 if quick else 64
    setting = f"{shape.words()}, random weights; {new} tokens greedily after {PROMPT} of a prompt"
    bars = (
        Bar("Limbeck fp32", "transformers fp32", "speed", 1.2),
        Bar("Limbeck bf16", "transformers bf16", "speed", 2.0),
        Bar("Limbeck bf16", "llama.cpp F16", "speed", 1.0),
        Bar("Limbeck int8", "llama.cpp Q8_0", "speed", 1.3),
        Bar("Limbeck int4", "llama.cpp Q4_0", "speed", 1.3),
    )
    return claim_of("decode", "Decoding, one sequence", setting, arms(shape, new), bars)


if __name__ == "__main__":
    main(__file__, claim, shapes)
