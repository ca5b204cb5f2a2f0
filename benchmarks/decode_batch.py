"""Generating for sixteen sequences together in bf16, against transformers."""

from __future__ import annotations

from harness.claim import Arm, Bar, Claim
from harness.decoding import PROMPT, claim_of, limbeck, shape_of, shapes, transformers
from harness.turns import main


def claim(quick: bool) -> Claim:
    shape, new, rows = shape_of(quick), 8 if quick else 64, 4 if quick else 16
    setting = f"{shape.words()}, random weights in bf16; {rows} sequences, {new} tokens each greedily after {PROMPT}"
    arms = (
        Arm("transformers bf16", transformers(shape, "bfloat16", rows, new), "system", "eager"),
        Arm("Limbeck bf16", limbeck(shape, "bf16", rows, new)),
    )
    bars = (Bar("Limbeck bf16", "transformers bf16", "speed", 1.5),)
    return claim_of("decode_batch", "Decoding, sixteen sequences", setting, arms, bars)


if __name__ == "__main__":
    main(__file__, claim, shapes)
