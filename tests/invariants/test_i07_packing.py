"""I7: packed documents have the losses and gradients of the same documents alone."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import collate
from limbeck.data.batches import Batches
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.model.patterns import Sliding
from tests.reference.families import family, gradients, nll

ROWS = toy_rows("qa", size=12)
TOK = Tokenizer.train([" ".join(row.fields.values()) for row in ROWS], 300)
PAIRS, _ = encode_rows(ROWS, TOK, 48, template=Template(prompt="{question}\n", answer="{answer}"))
TEXTS, _ = encode_rows(ROWS, TOK, 10, field="answer", overlap=1)  # chunks: several examples of one row

MODELS = [("gpt2", {}), ("llama", {}), ("llama", {"pattern": (Sliding(window=5, sinks=2), Sliding(window=3))})]


@pytest.mark.parametrize("examples", [PAIRS, TEXTS], ids=["pairs", "chunks"])
@pytest.mark.parametrize(("name", "over"), MODELS)
@pytest.mark.parametrize("bucketing", [False, True])
def test_losses_and_gradients_are_those_of_the_documents_alone(
    name: str, over: dict[str, object], examples: list, bucketing: bool
) -> None:
    # Rows are twice as long as learned positions reach: a position that ran on over a border would have no embedding.
    model = family(name, context=48, **over)
    stream = Batches(examples, batch_size=3, context=96, pad_id=TOK.pad_id, packing=True, bucketing=bucketing)
    batches = [stream.at(i) for i in range(stream.per_epoch)]
    packed = sum(int(b.document_ids.max()) > 1 for b in batches)
    assert packed, "nothing was packed"
    ours: dict[tuple[int, int], float] = {}
    with torch.no_grad():
        for batch in batches:
            losses = nll(model(batch), batch)
            for b, t in (batch.next_token_labels() >= 0).nonzero().tolist():
                # keyed by the token learned: its row and its place in it
                ours[int(batch.row_ids[b, t + 1]), int(batch.offsets[b, t + 1])] = float(losses[b, t])
        expected: dict[tuple[int, int], float] = {}
        for example in examples:
            alone = collate([[example]])
            losses = nll(model(alone), alone)[0]
            for t in range(1, len(example)):
                if example.target[t]:
                    expected[example.row, example.offset + t] = float(losses[t - 1])
    assert ours.keys() == expected.keys()
    assert all(abs(ours[k] - expected[k]) <= 1e-10 * max(1.0, expected[k]) for k in ours)
    whole = gradients(model, [collate([[e]]) for e in examples])
    for key, value in gradients(model, batches).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-9, atol=1e-11)


def test_a_token_changes_nothing_beyond_its_document() -> None:
    model = family("llama")
    batch = collate([PAIRS[:2]])
    border = len(PAIRS[0])
    changed = batch.ids.clone()
    changed[0, border - 2] = (changed[0, border - 2] + 1) % 300
    with torch.no_grad():
        before = model(batch)
        after = model(type(batch)(changed, batch.target_mask, batch.document_ids, batch.row_ids, batch.offsets))
    torch.testing.assert_close(before[0, border:], after[0, border:], rtol=0, atol=0)
    assert not torch.equal(before[0, border - 2], after[0, border - 2])
