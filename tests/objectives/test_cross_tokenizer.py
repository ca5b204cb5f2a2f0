"""A teacher with another tokenizer: sorted distributions, aligned places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.data.batch import Batch, Example, collate
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError, DataError
from limbeck.losses.terms import total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.cross_tokenizer import CrossTokenizer, align, sorted_distance
from limbeck.objectives.next_token import NextToken
from tests.reference.small_tokenizer import byte_level, metaspace
from tests.reference.task_models import small, tokenizer


def teacher_of(tok: Tokenizer) -> Decoder:
    torch.manual_seed(7)
    return Decoder(DecoderConfig(vocab_size=tok.vocab_size, context=64, layers=2, hidden_size=24, heads=2)).eval()


def batch(texts: list[tuple[str, str]], end: bool = True) -> Batch:
    tok, rows = tokenizer(), []
    for i, (prompt, answer) in enumerate(texts):
        before = [tok.eos_id, *tok.encode(prompt)]
        ids = np.array([*before, *tok.encode(answer), *([tok.eos_id] if end else [])], dtype=np.int32)
        rows.append([Example(i, str(i), ids, np.arange(len(ids)) >= len(before))])
    return collate(rows, tok.pad_id)


TEXTS = [("Is it a paraphrase?", " yes, the cat sat on the mat"), ("Sentiment:", " positive")]


def test_the_distance_is_its_definition() -> None:
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 11, dtype=torch.float64)
    found = sorted_distance(student, teacher, 1.3)
    for i in range(5):
        p = sorted((student[i] / 1.3).softmax(-1).tolist(), reverse=True) + [0.0] * 4
        q = sorted((teacher[i] / 1.3).softmax(-1).tolist(), reverse=True)
        assert float(found[i]) == pytest.approx(sum(abs(a - b) for a, b in zip(p, q, strict=True)), rel=1e-12)
    shuffled = teacher[:, torch.randperm(11)]
    assert torch.allclose(sorted_distance(shuffled, teacher), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    sure = torch.full((1, 50), -1e9)
    sure[0, 3] = 0
    assert 1.9 < float(sorted_distance(sure, torch.zeros(1, 5000))) <= 2


def test_places_are_aligned_where_both_have_read_the_same_text() -> None:
    assert align(["", "the", "the cat"], ["", "t", "the", "the c", "the cat"]) == ((0, 1), (0, 2))
    assert align(["", "é"], ["", "\ufffd", "é"]) == ((0,), (0,))
    assert align(["", "a", "ab", "ab"], ["", "ab", "ab"]) == ((0, 2), (0, 1))  # the end token is predicted too


@pytest.mark.parametrize("alignment", ["position", "text"])
@pytest.mark.parametrize("tok", [byte_level(), metaspace()], ids=["bytes", "pieces"])
def test_loss_and_gradient_are_those_of_a_row_at_a_time(tok: Tokenizer, alignment: Any) -> None:
    student, teacher, some = small().double(), teacher_of(tok).double(), batch(TEXTS)
    objective = CrossTokenizer(teacher, tok, tokenizer(), alpha=0.3, beta=0.7, alignment=alignment)
    counts = objective.counts(some)
    loss = total(objective(student, some), counts)
    loss.backward()  # type: ignore[no-untyped-call]
    ours = {k: p.grad.clone() for k, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    distance, places, texts = torch.zeros((), dtype=torch.float64), 0, set()
    for (prompt, answer), row in zip(TEXTS, objective._rows(some), strict=True):
        own = tokenizer()
        mine = [own.eos_id, *own.encode(prompt), *own.encode(answer), own.eos_id]
        begin = tok.bos_id if tok.bos_id is not None else tok.eos_id
        theirs = [begin, *tok.encode(prompt), *tok.encode(answer, continues=True), tok.eos_id]
        assert row[0] == theirs
        q, p = student(Batch.of_ids(torch.tensor([mine])))[0], teacher(Batch.of_ids(torch.tensor([theirs])))[0]
        for a, b in zip(row[1].student, row[1].teacher, strict=True):
            if alignment == "text":
                assert own.decode(mine[1 : a + 1]) == tok.decode(theirs[1 : b + 1])
                texts.add(own.decode(mine[1 : a + 1]))
            x = q[a].softmax(-1).sort(descending=True).values
            y = p[b].softmax(-1).sort(descending=True).values.detach()
            width = max(len(x), len(y))
            distance = distance + (F.pad(x, (0, width - len(x))) - F.pad(y, (0, width - len(y)))).abs().sum()
            places += 1
    plain = NextToken()
    nll = total(plain(student, some), plain.counts(some))
    (0.3 * nll + 0.7 * distance / places).backward()  # type: ignore[no-untyped-call]
    assert places == counts["uld"] > 2 and (alignment == "position" or "Is it a paraphrase? yes" in texts)
    assert loss.item() == pytest.approx((0.3 * nll + 0.7 * distance / places).item(), rel=1e-9)
    for k, p in student.named_parameters():
        assert p.grad is not None and torch.allclose(ours[k], p.grad, rtol=1e-6, atol=1e-10), k
    assert all(p.grad is None for p in teacher.parameters())


def test_one_tokenizer_on_both_sides_aligns_every_place() -> None:
    teacher = small(layers=3)
    some = batch(TEXTS)
    for alignment in ("position", "text"):
        objective = CrossTokenizer(teacher, tokenizer(), tokenizer(), alignment=alignment)  # type: ignore[arg-type]
        counts = objective.counts(some)
        assert counts["uld"] == counts["nll"]
        assert objective(teacher, some)["uld"].sum.item() == pytest.approx(
            0, abs=1e-4
        )  # the teacher is its own student


def test_weights_of_zero_and_rows_that_cannot_be() -> None:
    tok = byte_level()
    teacher, some = teacher_of(tok), batch(TEXTS, end=False)
    alone = CrossTokenizer(teacher, tok, tokenizer(), alpha=1.0, beta=0.0)
    assert set(alone(small(), some)) == set(alone.counts(some)) == {"nll"}
    assert set(CrossTokenizer(teacher, tok, tokenizer(), alpha=0.0)(small(), some)) == {"uld"}
    for wrong in ({"alpha": 0.0, "beta": 0.0}, {"alpha": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            CrossTokenizer(teacher, tok, tokenizer(), **wrong)  # type: ignore[arg-type]
    rows = [Example(i, str(i), np.arange(1, 6, dtype=np.int32), np.ones(5, dtype=np.bool_)) for i in range(2)]
    with pytest.raises(DataError, match="leave packing out"):
        alone_uld = CrossTokenizer(teacher, tok, tokenizer())
        alone_uld.counts(collate([rows]))


def test_an_answer_beyond_the_teachers_context_is_compared_as_far_as_it_reads() -> None:
    tok = byte_level()
    teacher = teacher_of(tok)
    some = batch([("Sentiment: " * 10, " the cat sat on the mat" * 3)])
    objective = CrossTokenizer(teacher, tok, tokenizer())
    counts = objective.counts(some)
    terms = objective(small(), some, counts)
    assert terms["uld"].count == counts["uld"] and torch.isfinite(terms["uld"].sum)
