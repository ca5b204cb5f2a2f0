from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config import build
from limbeck.data.batch import Example
from limbeck.data.prompts import Template, Truncate, encode_rows, prompt_ids
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.errors import ConfigError, DataError, NothingToLearnError
from tests.reference.encoding import encode_pair, encode_text
from tests.reference.tokenizers import llama_like

QA = Template(prompt="Question: {question}\nAnswer:", answer=" {answer}")
TOK = Tokenizer.train([" ".join(r.fields.values()) for r in toy_rows("qa", size=200)], 300)
ROW = Row("q1", {"question": "Where does Ada live?", "answer": "Ada lives in Oakby."})
PROMPT = TOK.encode("Question: Where does Ada live?\nAnswer:")
ANSWER = TOK.encode(" Ada lives in Oakby.")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(llama_like(tmp_path_factory.mktemp("llama")))


def _same(a: Example, b: Example) -> bool:
    return (a.row, a.id, a.offset) == (b.row, b.id, b.offset) and (
        np.array_equal(a.ids, b.ids) and np.array_equal(a.target, b.target)
    )


# --- templates


def test_a_template_names_its_fields_and_fills_them() -> None:
    template = Template(prompt="{{literal}} {a} {b} {a}", answer=" {c}{a}")
    assert template.fields == ("a", "b", "c")
    row = Row("x", {"a": "{b}", "b": 2, "c": "z"})
    assert template.render_prompt(row) == "{literal} {b} 2 {b}" and template.render_answer(row) == " z{b}"


@pytest.mark.parametrize("text", ["{", "{a.b}", "{a[0]}", "{}", "{0}", "{a:>5}", "{a!r}"])
def test_a_placeholder_is_a_plain_name(text: str) -> None:
    with pytest.raises(ConfigError, match="'prompt' in the configuration"):
        build(Template, {"prompt": text, "answer": "x"})


def test_an_unknown_field_is_an_error_that_names_the_nearest() -> None:
    template = Template(prompt="{quesiton}", answer="{answer}")
    with pytest.raises(DataError, match="row q1 of a.csv has no field 'quesiton'.*did you mean 'question'"):
        encode_pair(0, ROW, template, TOK, 64, source="a.csv")
    with pytest.raises(DataError, match="row q1 of mine has no field 'quesiton'"):
        encode_rows(Rows.of([ROW], "mine"), TOK, 64, template=template)


# --- pairs


def test_the_answer_and_the_end_token_are_the_targets() -> None:
    e = encode_pair(7, ROW, QA, TOK, 64)
    assert (e.row, e.id, e.offset) == (7, "q1", 0)
    assert e.ids.tolist() == [*PROMPT, *ANSWER, TOK.eos_id] and e.ids.dtype == np.int32
    assert e.target.tolist() == [False] * len(PROMPT) + [True] * (len(ANSWER) + 1)
    assert e.predictions == len(ANSWER) + 1


def test_without_end_token_and_with_begin_token() -> None:
    e = encode_pair(0, ROW, QA, TOK, 64, end_token=False, bos=True)
    assert e.ids.tolist() == [TOK.bos_id, *PROMPT, *ANSWER]
    assert e.predictions == len(ANSWER)


def test_the_begin_token_is_added_where_the_tokenizer_does(llama: Tokenizer) -> None:
    row = Row("l", {"question": "once", "answer": "on"})
    e = encode_pair(0, row, QA, llama, 64)
    assert e.ids[0] == llama.bos_id and e.ids[-1] == llama.eos_id
    assert llama.decode(e.ids.tolist()) == "Question: once\nAnswer: on"
    assert encode_pair(0, row, QA, llama, 64, bos=False).ids[0] != llama.bos_id
    cloze = Template(prompt="", answer="{answer}")
    assert encode_pair(0, row, cloze, llama, 64, bos=False).ids.tolist() == [*llama.encode("on"), llama.eos_id]


def test_a_begin_token_that_is_not_there_cannot_be_added(tmp_path: Path) -> None:
    TOK.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="has no begin token"):
        encode_pair(0, ROW, QA, Tokenizer.load(tmp_path), 64, bos=True)


def test_a_special_string_in_a_row_ends_nothing() -> None:
    row = Row("q", {"question": "<|endoftext|>", "answer": "a<|endoftext|>b"})
    assert encode_pair(0, row, QA, TOK, 64).ids.tolist().count(TOK.eos_id) == 1


def test_prompt_ids_are_what_training_puts_before_the_answer(llama: Tokenizer) -> None:
    for tokenizer in (TOK, llama):
        e = encode_pair(0, ROW, QA, tokenizer, 400)
        assert prompt_ids(ROW, QA, tokenizer) == e.ids[~e.target].tolist()
    assert prompt_ids(ROW, QA, TOK, limit=5) == PROMPT[-5:]
    assert prompt_ids(ROW, QA, TOK, bos=True, limit=5) == [TOK.bos_id, *PROMPT[-4:]]
    assert prompt_ids(ROW, QA, TOK, bos=True, limit=1) == [TOK.bos_id]


# --- truncation


def test_a_prompt_loses_its_beginning() -> None:
    context = len(ANSWER) + 1 + 6
    e = encode_pair(0, ROW, QA, TOK, context)
    assert e.ids.tolist() == [*PROMPT[-6:], *ANSWER, TOK.eos_id] and e.predictions == len(ANSWER) + 1
    e = encode_pair(0, ROW, QA, TOK, context, bos=True)
    assert e.ids.tolist() == [TOK.bos_id, *PROMPT[-5:], *ANSWER, TOK.eos_id]


def test_the_last_prompt_token_stays_and_then_the_answer_loses_its_end() -> None:
    e = encode_pair(0, ROW, QA, TOK, 4)
    assert e.ids.tolist() == [PROMPT[-1], *ANSWER[:3]] and e.predictions == 3
    e = encode_pair(0, ROW, QA, TOK, 4, bos=True)
    assert e.ids.tolist() == [TOK.bos_id, *ANSWER[:3]] and e.predictions == 3


def test_an_answer_loses_its_end_where_told() -> None:
    context = len(PROMPT) + 2
    e = encode_pair(0, ROW, QA, TOK, context, truncate="answer_right")
    assert e.ids.tolist() == [*PROMPT, *ANSWER[:2]] and e.predictions == 2


def test_a_row_that_is_too_long_is_refused_where_told() -> None:
    size = len(PROMPT) + len(ANSWER) + 1
    assert len(encode_pair(0, ROW, QA, TOK, size, truncate="drop")) == size
    with pytest.raises(DataError, match=f"no row of a.csv is left .*: of 1, 1 are longer than {size - 1} tokens"):
        encode_pair(0, ROW, QA, TOK, size - 1, truncate="drop", source="a.csv")


modes = st.sampled_from(["prompt_left", "answer_right"])


@given(st.text(max_size=30), st.text(max_size=30), st.integers(2, 40), modes, st.booleans(), st.booleans())
def test_pairs_fit_and_their_targets_are_the_answers_head(
    question: str, answer: str, context: int, truncate: Truncate, end: bool, bos: bool
) -> None:
    row = Row("h", {"question": question, "answer": answer})
    template = Template(prompt="{question}", answer="{answer}")
    learned = TOK.encode(answer) + ([TOK.eos_id] if end else [])
    try:
        e = encode_pair(0, row, template, TOK, context, truncate=truncate, end_token=end, bos=bos)
    except NothingToLearnError:
        given_tokens = len(TOK.encode(question)) + bos
        assert (
            not answer.strip()
            or (given_tokens >= context and truncate == "answer_right")
            or given_tokens + len(learned) < 2
        )
        return
    assert 2 <= len(e) <= context and e.predictions > 0 and answer.strip()
    first = int(e.target.argmax())
    assert e.target[first:].all() and not e.target[:first].any()
    assert e.ids[first:].tolist() == learned[: len(e) - first]
    whole = [TOK.bos_id] * bos + TOK.encode(question) + learned
    if len(whole) <= context:
        assert e.ids.tolist() == whole


# --- documents


def _text(n: int) -> Row:
    ids = (np.arange(n) % 20 + 40).tolist()
    return Row("doc", {"text": "".join(TOK.decode([i]) for i in ids)})


def test_a_document_is_cut_into_chunks_with_offsets() -> None:
    row = Row("doc", {"text": "the color of the door of Ada is red."})
    ids = [*TOK.encode(row.fields["text"]), TOK.eos_id]
    chunks = encode_text(3, row, TOK, 5)
    assert [c.offset for c in chunks] == list(range(0, len(ids), 5))[: len(chunks)]
    assert [i for c in chunks for i in c.ids.tolist()] == ids[: sum(map(len, chunks))]
    assert all(c.target.all() and c.row == 3 and c.id == "doc" for c in chunks)


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 11), st.booleans(), st.booleans())
def test_chunks_cover_a_document_and_learn_each_token_once(
    n: int, context: int, overlap: int, end: bool, bos: bool
) -> None:
    row = _text(n)
    ids = [TOK.bos_id] * bos + TOK.encode(row.fields["text"]) + [TOK.eos_id] * end
    if overlap >= context:
        with pytest.raises(DataError, match="cannot overlap"):
            encode_text(0, row, TOK, context, overlap=overlap)
        return
    if len(ids) < 2:
        with pytest.raises(NothingToLearnError):
            encode_text(0, row, TOK, context, overlap=overlap, end_token=end, bos=bos)
        return
    learned: list[int] = []
    for chunk in encode_text(0, row, TOK, context, overlap=overlap, end_token=end, bos=bos):
        assert chunk.ids.tolist() == ids[chunk.offset : chunk.offset + len(chunk)] and len(chunk) <= context
        learned += [chunk.offset + t for t in range(1, len(chunk)) if chunk.target[t]]
    assert len(set(learned)) == len(learned)
    firsts = {c for c in range(0, len(ids), context)} if overlap == 0 else {0}
    assert set(learned) == set(range(len(ids))) - firsts


def test_an_empty_document_has_nothing_to_learn() -> None:
    with pytest.raises(NothingToLearnError, match="row e of tales.txt has nothing to learn"):
        encode_text(0, Row("e", {"text": ""}), TOK, 8, bos=True, source="tales.txt")
    with pytest.raises(DataError, match="no field 'text'"):
        encode_text(0, ROW, TOK, 8)


# --- data sets


@pytest.mark.parametrize("truncate", ["prompt_left", "answer_right"])
def test_many_rows_are_encoded_as_one_by_one(truncate: Truncate, llama: Tokenizer) -> None:
    rows = toy_rows("qa", size=40)
    for tokenizer, context in ((TOK, 40), (llama, 60)):
        examples, report = encode_rows(rows, tokenizer, context, template=QA, truncate=truncate, on_empty="count")
        alone = []
        for i, row in enumerate(rows):
            try:
                alone.append(encode_pair(i, row, QA, tokenizer, context, truncate=truncate))
            except NothingToLearnError:
                assert row.id in report.empty
        assert len(alone) == len(examples) and all(map(_same, alone, examples))
        assert report.truncated and (report.empty or truncate == "prompt_left")


def test_the_report_counts_what_happened() -> None:
    long = Row("long", {"question": "Where " * 60, "answer": "x"})
    rows = Rows.of([ROW, long], "mine")
    examples, report = encode_rows(rows, TOK, 64, template=QA)
    assert (report.rows, report.examples, report.truncated, report.dropped) == (2, 2, ("long",), ())
    assert report.tokens == sum(map(len, examples)) and report.target_tokens == sum(e.predictions for e in examples)
    examples, report = encode_rows(rows, TOK, 64, template=QA, truncate="drop")
    assert [e.id for e in examples] == ["q1"] and report.too_long == report.dropped == ("long",)
    assert report.describe() == {
        "rows": 2, "examples": 1, "tokens": report.tokens, "target_tokens": report.target_tokens,
        "truncated": 0, "too_long": 1, "empty": 0, "too_long_ids": ["long"],
    }  # fmt: skip


def test_documents_in_bulk() -> None:
    rows = Rows.of(
        [Row("a", {"story": "the door of Ada is red"}), Row("b", {"story": ""}), Row("c", {"story": "is"})], "s"
    )
    with pytest.raises(NothingToLearnError, match="row b of s"):
        encode_rows(rows, TOK, 6, field="story")
    examples, report = encode_rows(rows, TOK, 6, field="story", on_empty="count", overlap=2)
    alone = [
        *encode_text(0, rows[0], TOK, 6, field="story", overlap=2),
        *encode_text(2, rows[2], TOK, 6, field="story", overlap=2),
    ]
    assert len(alone) == len(examples) and all(map(_same, alone, examples))
    assert report.empty == ("b",) and report.rows == 3 and report.examples == len(examples)


def test_a_set_with_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="no row of mine is left to learn from: of 1, 1 are longer than 8 tokens"):
        encode_rows(Rows.of([ROW], "mine"), TOK, 8, template=QA, truncate="drop")


def test_a_blank_answer_is_nothing_to_learn() -> None:
    blank = Row("blank", {"question": "Why?", "answer": " \n"})
    with pytest.raises(NothingToLearnError, match="row blank of a.json has nothing to learn: its text is blank"):
        encode_pair(0, blank, QA, TOK, 64, source="a.json")
    examples, report = encode_rows(Rows.of([blank, ROW], "mine"), TOK, 64, template=QA, on_empty="count")
    assert [e.id for e in examples] == ["q1"] and report.empty == ("blank",)
