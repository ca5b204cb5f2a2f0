"""Distillation of 12 layers into 6, the teacher live and from disk, against a plain loop over the whole logits."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import OURS, THEIRS, plain_loop, train_ours
from harness.turns import main
from harness.worker import Turn

ALPHA, BETA, TEMPERATURE = 0.5664, 0.1081, 0.7  # of the published question-answering distillation
TOP_K = 64


def student_of(teacher: Shape) -> Shape:
    return replace(teacher, layers=teacher.layers // 2)


def limbeck(turn: Turn, shape: Shape, size: tuple[int, int], top_k: int = 0) -> None:
    turn.imports(*OURS, "limbeck.objectives.distill", "limbeck.objectives.teacher_cache_build")
    import numpy as np

    from limbeck.data.batch import Example, collate
    from limbeck.objectives.distill import Distillation
    from limbeck.objectives.teacher import LiveTeacher
    from limbeck.objectives.teacher_cache import CachedTeacher, CacheKey
    from limbeck.objectives.teacher_cache_build import build_cache

    rows = random_ids(shape, *size).numpy().astype("int32")
    target = np.arange(size[1]) >= size[1] // 2
    examples = [Example(i, str(i), row, target) for i, row in enumerate(rows)]
    batch = collate([[e] for e in examples])
    teacher = LiveTeacher(ours(shape, "bfloat16"))

    def named(tokens: int, losses) -> None:
        shown = {"nll": losses["nll"], ("kl of top tokens" if top_k else "kl"): losses["kl"]}
        turn(tokens, shown)

    with tempfile.TemporaryDirectory() as folder:
        if top_k:
            key = CacheKey(teacher="t", data="d", template="p", k=top_k, temperature=TEMPERATURE, rows=shape.vocabulary)
            build_cache(teacher, examples, Path(folder), key, batch_size=1)
            teacher = CachedTeacher(Path(folder), key)
        objective = Distillation(teacher, ALPHA, BETA, TEMPERATURE)
        train_ours(named, ours(student_of(shape)), objective, [batch])


def plain(turn: Turn, shape: Shape, size: tuple[int, int]) -> None:
    turn.imports(*THEIRS)
    import torch
    import torch.nn.functional as F

    teacher, student = theirs(shape, "bfloat16").eval().requires_grad_(False), theirs(student_of(shape))
    ids = random_ids(shape, *size)
    labels = ids.clone()
    labels[:, : size[1] // 2] = -100

    def loss(_: int):
        with torch.no_grad():
            taught = teacher(input_ids=ids).logits[:, :-1].float() / TEMPERATURE
        logits = student(input_ids=ids).logits[:, :-1].float()
        nll = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        kl = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, -1), F.log_softmax(taught, -1), log_target=True, reduction="none"
        )
        kl = kl.sum(-1).mean()
        return ALPHA * nll + BETA * TEMPERATURE**2 * kl, {"nll": nll, "kl": kl}

    plain_loop(turn, student, loss, [ids.numel()])


def setting(shape: Shape, size: tuple[int, int]) -> str:
    return (
        f"teacher {shape.words()}, student of {student_of(shape).layers} layers; {size[0]} x {size[1]} random tokens, "
        f"the second half of each row labelled, KL on all; bf16 (the teacher's weights too), AdamW, clipping"
    )


def claim(quick: bool) -> Claim:
    shape, size, k = (TINY, (2, 24), 8) if quick else (GPT2, (4, 256), TOP_K)
    return Claim(
        name="distillation",
        title="Distillation",
        setting=setting(shape, size),
        arms=(
            Arm("plain loop", lambda turn: plain(turn, shape, size), "system", "transformers, whole logits"),
            Arm("plain loop, freed memory kept", lambda turn: plain(turn, shape, size), "keep"),
            Arm("Limbeck, live teacher", lambda turn: limbeck(turn, shape, size)),
            Arm(
                "Limbeck, teacher on disk", lambda turn: limbeck(turn, shape, size, k), "keep",
                f"its {k} likeliest tokens and the mass of the rest; the peak includes writing them with the teacher",
            ),
        ),
        bars=tuple(
            bar
            for against in ("plain loop", "plain loop, freed memory kept")
            for bar in (
                Bar("Limbeck, live teacher", against, "speed", 2.0),
                Bar("Limbeck, teacher on disk", against, "speed", 3.0),
                Bar("Limbeck, live teacher", against, "peak", 0.65),
                Bar("Limbeck, teacher on disk", against, "peak", 0.65),
            )
        ),
        equal={"nll": 2e-3, "kl": 2e-2},
    )  # fmt: skip


def shapes(quick: bool) -> list[Shape]:
    shape = TINY if quick else GPT2
    return [shape, student_of(shape)]


if __name__ == "__main__":
    main(__file__, claim, shapes)
