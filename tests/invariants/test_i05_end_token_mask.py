"""I5: the end token is a target even where padding has the same id (the masks' side)."""

from __future__ import annotations

import pytest

from limbeck.data.batches import Batches
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows

ROWS = toy_rows("qa", size=30)
TOK = Tokenizer.train([" ".join(row.fields.values()) for row in ROWS], 300)
HOW = [{}, {"packing": True}, {"bucketing": True}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("template", [Template(prompt="Q: {question}\nA:", answer=" {answer}"), None])
def test_every_document_learns_to_stop_and_padding_is_not_learned(
    template: Template | None, how: dict[str, bool]
) -> None:
    assert TOK.pad_id == TOK.eos_id
    examples, _ = encode_rows(ROWS, TOK, 128, template=template, field="answer")
    stream = Batches(examples, batch_size=4, context=128, pad_id=TOK.pad_id, **how)
    stops, padding = 0, 0
    for i in range(stream.per_epoch):
        batch = stream.at(i)
        labels = batch.next_token_labels()
        stops += int((labels == TOK.eos_id).sum())
        padding += int((~batch.real).sum())
        for b in range(labels.shape[0]):
            last = [t for t in range(labels.shape[1]) if batch.document_ids[b, t] > 0][-1]
            assert batch.ids[b, last] == TOK.eos_id and labels[b, last - 1] == TOK.eos_id
            assert (labels[b, last:] == -100).all()
    assert stops == len(ROWS) and padding > 0


def test_an_end_token_that_was_cut_away_is_not_learned() -> None:
    template = Template(prompt="Q: {question}\nA:", answer=" {answer}")
    examples, report = encode_rows(ROWS, TOK, 40, template=template, truncate="answer_right", on_empty="count")
    assert report.truncated
    for example in examples:
        ends = example.ids[-1] == TOK.eos_id
        assert ends == (example.id not in report.truncated) and TOK.eos_id not in example.ids[:-1]


def test_without_end_token_none_is_learned() -> None:
    examples, _ = encode_rows(ROWS, TOK, 128, field="answer", end_token=False)
    assert not any(TOK.eos_id in example.ids for example in examples)
