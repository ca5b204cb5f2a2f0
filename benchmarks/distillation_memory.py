"""Memory of distillation at 4,096 tokens a step, against a plain loop over the whole logits."""

from __future__ import annotations

from distillation import limbeck, plain, setting, shapes
from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY
from harness.turns import main


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (4, 48)) if quick else (GPT2, (16, 256))
    return Claim(
        name="distillation_memory",
        title="Distillation, memory at 4,096 tokens a step",
        setting=setting(shape, size),
        arms=(
            Arm("plain loop", lambda turn: plain(turn, shape, size), "system", "transformers, whole logits"),
            Arm("plain loop, freed memory kept", lambda turn: plain(turn, shape, size), "keep"),
            Arm("Limbeck, live teacher", lambda turn: limbeck(turn, shape, size)),
        ),
        bars=(
            Bar("Limbeck, live teacher", "plain loop", "peak", 0.4),
            Bar("Limbeck, live teacher", "plain loop, freed memory kept", "peak", 0.4),
        ),
        rounds=2,
        steps=1,
        warmup=1,
        equal={"nll": 2e-3, "kl": 2e-2},
        apart=True,
    )


if __name__ == "__main__":
    main(__file__, claim, shapes)
