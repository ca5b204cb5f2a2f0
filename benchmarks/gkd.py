"""Distillation by forward KL alone on given texts, against trl's GKDTrainer."""

from __future__ import annotations

from typing import Any

from distillation import shapes, student_of
from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import OURS, train_ours
from harness.trl_side import PACKAGES, TRL, arguments, tokenizer_of, trl_loop
from harness.turns import main
from harness.worker import Turn


def limbeck(turn: Turn, shape: Shape, size: tuple[int, int]) -> None:
    turn.imports(*OURS, "limbeck.objectives.distill")
    from limbeck.data.batch import Batch
    from limbeck.objectives.distill import Distillation
    from limbeck.objectives.teacher import LiveTeacher

    def named(tokens: float, losses: Any) -> None:
        turn(tokens, {"kl": losses["kl"]})

    objective = Distillation(LiveTeacher(ours(shape, "bfloat16")), alpha=0.0, beta=1.0)
    train_ours(named, ours(student_of(shape)), objective, [Batch.of_ids(random_ids(shape, *size))])


def trl(turn: Turn, shape: Shape, size: tuple[int, int], checkpointing: bool) -> None:
    turn.imports(*TRL, "trl.experimental.gkd")
    from datasets import Dataset
    from transformers import default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    # without its label the first token, which nothing predicts, is not counted by the trainer's denominator either
    rows = [
        {"input_ids": ids, "attention_mask": [1] * size[1], "labels": [-100, *ids[1:]]}
        for ids in random_ids(shape, *size).tolist()
    ]
    options = arguments(GKDConfig, size[0], checkpointing, lmbda=0.0, beta=0.0, max_length=size[1])
    trl_loop(
        turn, GKDTrainer, size[0] * size[1], "kl",
        lambda kind: kind(
            model=theirs(student_of(shape)), teacher_model=theirs(shape, "bfloat16"), args=options,
            train_dataset=Dataset.from_list(rows), processing_class=tokenizer_of(shape),
            data_collator=default_data_collator,
        ),
    )  # fmt: skip


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (2, 24)) if quick else (GPT2, (4, 256))
    return Claim(
        name="gkd",
        title="Distillation, beside trl",
        setting=f"teacher {shape.words()}, student of {student_of(shape).layers} layers; {size[0]} x {size[1]} random "
        "tokens, forward KL at temperature 1, no text generated; bf16 (the teacher's weights too), AdamW, clipping",
        arms=(
            Arm(
                "trl GKDTrainer", lambda turn: trl(turn, shape, size, True), "system",
                "as users run it: it recomputes activations unless told not to", PACKAGES,
            ),
            Arm(
                "trl GKDTrainer, no recomputation, freed memory kept", lambda turn: trl(turn, shape, size, False),
                "keep", "its fastest settings", PACKAGES,
            ),
            Arm("Limbeck", lambda turn: limbeck(turn, shape, size)),
        ),
        bars=tuple(
            bar
            for against in ("trl GKDTrainer", "trl GKDTrainer, no recomputation, freed memory kept")
            for bar in (Bar("Limbeck", against, "speed"), Bar("Limbeck", against, "peak"))
        ),
        equal={"kl": 2e-2},
    )  # fmt: skip


if __name__ == "__main__":
    main(__file__, claim, shapes)
