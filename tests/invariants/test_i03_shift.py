"""I3: masks shift with labels; the last prompt token predicts the first answer token, and KL reads there too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import IGNORE, Batch
from limbeck.data.batches import Batches
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.model.decoder import Decoder
from tests.reference.families import family, nll

ROWS = toy_rows("qa", size=6)
TOK = Tokenizer.train([" ".join(row.fields.values()) for row in ROWS], 300)
QA = Template(prompt="Q: {question}\nA:", answer=" {answer}")
EXAMPLES, _ = encode_rows(ROWS, TOK, 128, template=QA)


def _texts() -> list[tuple[list[int], list[int]]]:
    """Prompt and learned tokens of each row, tokenised here and not by the code under test."""
    pairs = [(f"Q: {r.fields['question']}\nA:", f" {r.fields['answer']}") for r in ROWS]
    return [(TOK.encode(p), [*TOK.encode(a), TOK.eos_id]) for p, a in pairs]


def _next(model: Decoder, ids: list[int]) -> Tensor:
    """(V,) log-probabilities of what follows ``ids``, from a forward of these ids alone."""
    return model(Batch.of_ids(torch.tensor([ids])))[0, -1].log_softmax(-1)


@pytest.mark.parametrize("packing", [False, True])
def test_answer_tokens_are_scored_given_all_that_stands_before_them(packing: bool) -> None:
    model = family("llama", context=256)
    stream = Batches(EXAMPLES, batch_size=2, context=128, pad_id=TOK.pad_id, packing=packing)
    with torch.no_grad():
        ours = torch.zeros(len(ROWS), dtype=torch.float64)
        for i in range(stream.per_epoch):
            batch = stream.at(i)
            ours.index_add_(0, batch.row_ids.clamp(min=0).flatten(), nll(model(batch), batch).flatten())
        expected = [
            -sum(_next(model, prompt + answer[:k])[token] for k, token in enumerate(answer))
            for prompt, answer in _texts()
        ]
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_labels_stand_one_before_their_token_and_begin_at_the_last_prompt_token() -> None:
    batch = Batches(EXAMPLES, batch_size=6, context=128, pad_id=TOK.pad_id, shuffle=False).at(0)
    labels = batch.next_token_labels()
    for b, (prompt, answer) in enumerate(_texts()):
        first = len(prompt) - 1
        assert labels[b, first : first + len(answer)].tolist() == answer
        assert (labels[b, :first] == IGNORE).all() and (labels[b, first + len(answer) :] == IGNORE).all()


@pytest.mark.parametrize("on", ["answers", "all"])
def test_divergences_are_read_at_the_positions_that_predict(on: str) -> None:
    teacher, student = family("gpt2", context=256), family("llama", context=256)
    batch = Batches(EXAMPLES, batch_size=6, context=128, pad_id=TOK.pad_id, shuffle=False).at(0)
    where = batch.next_token_labels() != IGNORE if on == "answers" else batch.prediction_mask()
    with torch.no_grad():
        p, q = teacher(batch).log_softmax(-1), student(batch).log_softmax(-1)
        ours = (p.exp() * (p - q)).sum(-1)[where].sum()
        expected = torch.zeros((), dtype=torch.float64)
        for prompt, answer in _texts():
            whole = prompt + answer
            start = len(prompt) if on == "answers" else 1
            for k in range(start, len(whole)):  # token k is predicted from the k before it
                p_k, q_k = _next(teacher, whole[:k]), _next(student, whole[:k])
                expected += (p_k.exp() * (p_k - q_k)).sum()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
