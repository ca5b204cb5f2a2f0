"""DPO on two pairs of 256 tokens a step, the reference's log-probabilities computed before, against trl."""

from __future__ import annotations

import copy
from typing import Any

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import OURS, train_ours
from harness.trl_side import PACKAGES, TRL, arguments, text_of, tokenizer_of, trl_loop
from harness.turns import main
from harness.worker import Turn

BETA, RATE = 0.1, 1e-7
PROMPT = 4  # one part in this many of a sequence is prompt


def pairs(shape: Shape, size: tuple[int, int]) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected ids of each pair; a prompt with a completion fills the row and ends."""
    out = []
    for ids in random_ids(shape, size[0], 2, size[1]).tolist():
        cut = size[1] // PROMPT
        out.append((ids[0][:cut], *([*side[cut:-1], shape.vocabulary - 1] for side in ids)))
    return out


def limbeck(turn: Turn, shape: Shape, size: tuple[int, int]) -> None:
    turn.imports(*OURS, "limbeck.objectives.preference", "limbeck.data.pairs")
    import numpy as np
    import torch

    from limbeck.data.batch import Example
    from limbeck.data.pairs import PairExample, collate_pairs
    from limbeck.objectives.preference import Preference
    from limbeck.objectives.reference import Stored, pair_log_probs

    def pair(row: int, prompt: list[int], *sides: list[int]) -> PairExample:
        chosen, rejected = (np.array(prompt + side, dtype=np.int32) for side in sides)
        target = np.arange(size[1]) >= len(prompt)
        beside = Example(row, str(row), rejected, target)
        return PairExample(row, str(row), chosen, target, rejected=beside)

    batch = collate_pairs([[pair(i, *texts)] for i, texts in enumerate(pairs(shape, size))])
    model = ours(shape)
    with torch.no_grad():
        told = pair_log_probs(copy.deepcopy(model).to(torch.bfloat16), batch).tolist()
    stored = Stored({key: (a, b) for key, (a, b) in zip(batch.keys, told, strict=True)}, "the benchmark")

    def named(tokens: float, losses: Any) -> None:
        turn(tokens, {"preference": losses["preference"]})

    train_ours(named, model, Preference(stored, beta=BETA), [batch], RATE)


def trl(turn: Turn, shape: Shape, size: tuple[int, int], checkpointing: bool) -> None:
    turn.imports(*TRL)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": text_of(p, shape), "chosen": text_of(a, shape), "rejected": text_of(b, shape)}
        for p, a, b in pairs(shape, size)
    ]
    options = arguments(
        DPOConfig, size[0], checkpointing, RATE, beta=BETA, precompute_ref_log_probs=True, max_length=size[1]
    )
    trl_loop(
        turn, DPOTrainer, size[0] * 2 * size[1], "preference",
        lambda kind: kind(
            model=theirs(shape), args=options, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(shape),
        ),
    )  # fmt: skip


def claim(quick: bool) -> Claim:
    shape, size = (TINY, (2, 24)) if quick else (GPT2, (2, 256))
    return Claim(
        name="dpo",
        title="DPO",
        setting=f"{shape.words()}; {size[0]} pairs of {size[1]} random tokens a side, a quarter of them prompt, random "
        "weights, bf16, AdamW, clipping; the reference's log-probabilities computed before the first step",
        arms=(
            Arm(
                "trl DPOTrainer", lambda turn: trl(turn, shape, size, True), "system",
                "as users run it: it recomputes activations unless told not to", PACKAGES,
            ),
            Arm(
                "trl DPOTrainer, freed memory kept", lambda turn: trl(turn, shape, size, True), "keep", "", PACKAGES
            ),
            Arm(
                "trl DPOTrainer, no recomputation, freed memory kept", lambda turn: trl(turn, shape, size, False),
                "keep", "its fastest settings", PACKAGES,
            ),
            Arm("Limbeck", lambda turn: limbeck(turn, shape, size)),
        ),
        bars=tuple(
            bar
            for against in (
                "trl DPOTrainer", "trl DPOTrainer, freed memory kept",
                "trl DPOTrainer, no recomputation, freed memory kept",
            )
            for bar in (Bar("Limbeck", against, "speed", 2.0), Bar("Limbeck", against, "peak", 0.7))
        ),
        equal={"preference": 1e-2},  # bf16: on the steep part of the descent half a percent apart (fp32: tests/peers)
    )  # fmt: skip


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
