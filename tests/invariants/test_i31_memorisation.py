"""I31 memorisation: generated text is checked for long copies of training text, and the share is reported."""

from __future__ import annotations

import numpy as np
import torch

from limbeck.data.batch import Example, collate
from limbeck.decode.settings import Decoding
from limbeck.losses.terms import total
from limbeck.measure.alarm import Subject
from limbeck.measure.probes.memory import CopiedRun, Memorised, TrainingIndex
from limbeck.measure.probes.table import run_probes
from limbeck.measure.probes.writing import write
from limbeck.objectives.next_token import NextToken
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level


def test_a_model_that_recites_its_training_text_rings_and_a_fresh_one_does_not() -> None:
    tokenizer, length = byte_level(), 100
    draw = torch.Generator().manual_seed(3)
    learned = torch.randperm(260, generator=draw)[:length].numpy().astype(np.int32) + 5
    train = [Example(0, "0", learned, np.ones(length, np.bool_))]
    unlike = torch.randint(5, 265, (length - 16,), generator=draw).numpy().astype(np.int32)
    held_out = [Example(1, "1", np.concatenate([learned[:16], unlike]), np.ones(length, np.bool_))]
    model = decoder(context=2 * length, hidden_size=32, heads=4)
    index = TrainingIndex.of(train)
    probes = (Memorised(index), CopiedRun(index, threshold=40))

    def ask() -> dict[str, tuple[float, bool]]:
        out = write(model, tokenizer, held_out, Decoding(max_new_tokens=70))
        return {a.name: (a.value, a.fired) for a in run_probes(probes, Subject(model, out))}

    assert ask() == {"memorisation": (0.0, False), "copied-run": (0.0, False)}
    batch, objective = collate([[train[0]]]), NextToken()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        total(objective(model, batch), objective.counts(batch)).backward()
        optimizer.step()
    recited = ask()
    assert recited["memorisation"] == (1.0, True) and recited["copied-run"] == (70.0, True)
