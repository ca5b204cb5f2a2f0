"""Supervised fine-tuning on four sequences of 256 tokens a step, against trl's SFTTrainer."""

from __future__ import annotations

from full_finetuning import limbeck
from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, random_ids, theirs
from harness.trl_side import PACKAGES, TRL, arguments, tokenizer_of, trl_loop
from harness.turns import main
from harness.worker import Turn


def trl(turn: Turn, shape: Shape, size: tuple[int, int], checkpointing: bool) -> None:
    turn.imports(*TRL)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # without its label the first token, which nothing predicts, is not counted by the trainer's denominator either
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in random_ids(shape, *size).tolist()]
    options = arguments(SFTConfig, size[0], checkpointing, max_length=size[1])
    trl_loop(
        turn, SFTTrainer, size[0] * size[1], "nll",
        lambda kind: kind(
            model=theirs(shape), args=options, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(shape),
        ),
    )  # fmt: skip


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (2, 24)) if quick else (GPT2, (4, 256))
    return Claim(
        name="sft",
        title="Full fine-tuning, beside trl",
        setting=f"{shape.words()}; {size[0]} x {size[1]} random tokens, random weights, bf16, AdamW, clipping",
        arms=(
            Arm(
                "trl SFTTrainer", lambda turn: trl(turn, shape, size, True), "system",
                "as users run it: it recomputes activations unless told not to", PACKAGES,
            ),
            Arm(
                "trl SFTTrainer, no recomputation, freed memory kept", lambda turn: trl(turn, shape, size, False),
                "keep", "its fastest settings", PACKAGES,
            ),
            Arm("Limbeck", lambda turn: limbeck(turn, shape, size)),
        ),
        bars=tuple(
            bar
            for against in ("trl SFTTrainer", "trl SFTTrainer, no recomputation, freed memory kept")
            for bar in (Bar("Limbeck", against, "speed"), Bar("Limbeck", against, "peak"))
        ),
        equal={"nll": 2e-3},
    )  # fmt: skip


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
