"""Perplexity under one protocol in bf16, against the loop of transformers' guide."""

from __future__ import annotations

import os
from pathlib import Path

from harness.claim import Arm, Bar, Claim
from harness.shapes import GPT2, TINY, Shape, ours, random_ids, theirs
from harness.training import THEIRS
from harness.turns import main
from harness.worker import Turn

TEXT = ("wikitext2", "wiki.test.raw"), ("gpt2_tokenizer", "encoder.json"), ("gpt2_tokenizer", "vocab.bpe")


def files() -> list[Path] | None:
    """WikiText-2's test text and GPT-2's tokenizer in LIMBECK_DATA, where that is set and holds them."""
    folder = os.environ.get("LIMBECK_DATA")
    found = [Path(folder or "", *parts) for parts in TEXT]
    return found if folder and all(f.is_file() for f in found) else None


def windows(shape: Shape, count: int):
    """(count, context) ids: the first windows of the text, or random ones."""
    found = files()
    if found is None or shape.vocabulary != GPT2.vocabulary:
        return random_ids(shape, count, shape.context)
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    text, vocabulary, merges = found
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    ids: list[int] = []
    for line in lines:  # a few lines at a time: the slice is short
        ids += tokenizer.encode(line).ids
        if len(ids) >= count * shape.context:
            break
    return torch.tensor(ids[: count * shape.context]).view(count, shape.context)


def claim(quick: bool) -> Claim:
    shape, count = (TINY, 2) if quick else (GPT2, 8)

    def limbeck(turn: Turn) -> None:
        turn.imports("limbeck.measure.likelihood", "limbeck.formats.huggingface", "limbeck.measure.perplexity")
        import numpy as np

        from limbeck.data.batch import Example
        from limbeck.measure.likelihood import nll_sums

        ids = windows(shape, count)
        model = ours(shape, "bfloat16")
        target = np.ones(shape.context, dtype=bool)
        examples = [Example(i, str(i), row.numpy().astype("int32"), target) for i, row in enumerate(ids)]
        while True:
            turn(ids.numel(), {"nll": nll_sums(model, examples, 1).sum() / (ids.numel() - count)})

    def peer(turn: Turn) -> None:
        turn.imports(*THEIRS)
        import torch

        ids = windows(shape, count)
        model = theirs(shape, "bfloat16").eval()
        while True:
            with torch.no_grad():
                told = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
            turn(ids.numel(), {"nll": sum(told) / count})

    real = not quick and files() is not None
    what = "the first of WikiText-2's raw test text under GPT-2's tokenizer" if real else "random tokens"
    return Claim(
        name="perplexity",
        title="Perplexity",
        setting=f"{shape.words()}, random weights in bf16; {count} windows of {shape.context} tokens, none "
        f"overlapping, one at a time on both sides: {what}",
        arms=(
            Arm("transformers", peer, "system", "the loop of its guide"),
            Arm("transformers, freed memory kept", peer, "keep"),
            Arm("Limbeck", limbeck),
        ),
        bars=(
            Bar("Limbeck", "transformers", "speed", 1.7),
            Bar("Limbeck", "transformers, freed memory kept", "speed", 1.7),
            Bar("Limbeck", "transformers", "peak", 0.6),
            Bar("Limbeck", "transformers, freed memory kept", "peak", 0.6),
        ),
        steps=1,
        warmup=1,
        equal={"nll": 1e-3},
    )


def shapes(quick: bool) -> list[Shape]:
    return [TINY if quick else GPT2]


if __name__ == "__main__":
    main(__file__, claim, shapes)
