"""Full fine-tuning on documents of ragged lengths: transformers pads each batch, Limbeck packs the same documents."""

from __future__ import annotations

from harness.claim import Arm, Bar, Claim
from harness.documents import documents
from harness.shapes import GPT2, TINY, Shape, ours, theirs
from harness.training import OURS, THEIRS, plain_loop, train_ours
from harness.turns import main
from harness.worker import Turn


def claim(quick: bool) -> Claim:
    shape, steps, each, longest = (TINY, 2, 3, 64) if quick else (GPT2, 2, 10, 512)

    def limbeck(turn: Turn) -> None:
        turn.imports(*OURS, "limbeck.data.packing")
        import numpy as np

        from limbeck.data.batch import Example, collate
        from limbeck.data.packing import pack
        from limbeck.objectives.next_token import NextToken

        batches = []
        for texts in documents(shape, steps, each, longest):
            lengths = np.array([len(t) for t in texts])
            rows = pack(lengths, np.arange(len(texts)), longest, len(texts))
            made = [Example(i, str(i), t.numpy().astype("int32"), np.ones(len(t), bool)) for i, t in enumerate(texts)]
            batches.append(collate([[made[i] for i in row] for row in rows]))
        train_ours(turn, ours(shape), NextToken(), batches)

    def peer(turn: Turn) -> None:
        turn.imports(*THEIRS)
        import torch

        model = theirs(shape)
        padded = []
        batches = documents(shape, steps, each, longest)
        for texts in batches:
            width = max(map(len, texts))
            ids, labels = torch.zeros(each, width, dtype=torch.long), torch.full((each, width), -100)
            mask = torch.zeros(each, width, dtype=torch.long)
            for i, text in enumerate(texts):
                ids[i, : len(text)] = labels[i, : len(text)] = text
                mask[i, : len(text)] = 1
            padded.append({"input_ids": ids, "labels": labels, "attention_mask": mask})

        def loss(step: int):
            value = model(**padded[step % steps]).loss
            return value, {"nll": value}

        plain_loop(turn, model, loss, [sum(map(len, texts)) for texts in batches])

    return Claim(
        name="ragged_finetuning",
        title="Full fine-tuning, ragged lengths",
        setting=f"{shape.words()}; {each} documents a step, log-normal lengths of mean 100 up to {longest} tokens, the "
        "same documents on both sides; random weights, bf16, AdamW, clipping; useful tokens",
        arms=(
            Arm("transformers, padded to the longest", peer, "system", "bf16 autocast, as its collators pad"),
            Arm("transformers, padded to the longest, freed memory kept", peer, "keep"),
            Arm("Limbeck", limbeck, remark="documents packed into rows of 512, none sees another"),
        ),
        bars=(
            Bar("Limbeck", "transformers, padded to the longest", "speed", 4.0),
            Bar("Limbeck", "transformers, padded to the longest, freed memory kept", "speed", 4.0),
            Bar("Limbeck", "transformers, padded to the longest", "peak", 0.7),
            Bar("Limbeck", "transformers, padded to the longest, freed memory kept", "peak", 0.7),
        ),
        unit="useful tokens/s",
        rounds=3,
        steps=steps,
        warmup=steps,
        equal={"nll": 2e-3},
        apart=True,  # ten padded documents with their whole logits take 11 GB
    )  # fmt: skip


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
