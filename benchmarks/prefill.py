"""Reading a prompt of 1,000 tokens: Limbeck's numbers beside transformers' and llama.cpp's."""

from __future__ import annotations

from harness.claim import Bar, Claim
from harness.decoding import arms, claim_of, shape_of, shapes
from harness.turns import main


def claim(quick: bool) -> Claim:
    shape, prompt = shape_of(quick), 100 if quick else 1000
    setting = f"{shape.words()}, random weights; {prompt} tokens at once, logits of the last"
    bars = (
        Bar("Limbeck bf16", "llama.cpp F16", "speed", 4.0),
        Bar("Limbeck int8", "llama.cpp Q8_0", "speed", 3.5),
        Bar("Limbeck int4", "llama.cpp Q4_0", "speed", 3.5),
        Bar("Limbeck bf16", "transformers bf16", "speed", 1.3),
    )
    return claim_of("prefill", "Reading a prompt", setting, arms(shape, 0, prompt), bars)


if __name__ == "__main__":
    main(__file__, claim, shapes)
