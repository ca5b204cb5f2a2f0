"""Every reader, and what tasks make of any rows: an error of ours, or examples."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.chat import ChatTemplate
from limbeck.data.dialect import Dialect
from limbeck.data.instructions import encode_conversations, read_instructions
from limbeck.data.pairs import encode_pairs
from limbeck.data.preferences import read_preferences
from limbeck.data.readers import documents, read
from limbeck.data.splits import split_rows
from limbeck.measure.reasoning import flexible_answer, gold_answer, strict_answer
from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.sentiment import Sentiment
from limbeck.tasks.sonnets import Sonnets
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.text import Text
from tests.fuzz.limits import bounded, fuzzed, mutated
from tests.reference.small_tokenizer import byte_level


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([{"text": "a", "label": 1.0, "more": ["x"]}, {"text": None, "label": 0.5}]), out
    )
    return out.getvalue()


ROWS = [
    {"id": 1, "text": "so it is", "label": 1},
    {"id": 2, "text": "no", "label": None},
    {"id": 3, "text": "é", "label": 0},
]
FILES = {
    "csv": (b'id,text,label\n1,"a, b",1\n2,"say ""so""",0\n3,"two\nlines",1\n', b"text;label\r\na;1\r\n", b"text\na\n"),
    "tsv": (b'id\ttext\tlabel\n1\ta "quoted\t1\n2\tb\t0\n',),
    "json": (json.dumps(ROWS).encode(), json.dumps(["one", "two"]).encode(), b'{"text": "a"}\n{"text": "b"}'),
    "jsonl": ("\n".join(json.dumps(row) for row in ROWS).encode(), b'"one"\n"two"\n'),
    "txt": (b"one\n<|endoftext|>\ntwo", b"TITLE\n\n1\n\nroses\n\n2\n\nviolets\n", "I\n\né\n\nII\n\n人\n".encode()),
    "parquet": (_parquet(),),
}


@pytest.mark.parametrize("kind", FILES)
def test_readers(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    dialects = st.sampled_from([None, None, Dialect(quotes="on"), Dialect(quotes="off"), Dialect(delimiter="tab")])

    @fuzzed
    @given(mutated(*FILES[kind]), dialects, st.sampled_from(["error", "drop"]))
    def target(content: bytes, dialect: Dialect | None, missing: Any) -> None:
        file.write_bytes(content)
        how = dialect if kind in ("csv", "tsv") else None
        with bounded():
            rows = read(str(file), required=["text"], dialect=how, missing=missing)
            assert all(row.text("text").encode() is not None for row in rows)
        with bounded():
            for text in documents(str(file), dialect=how):
                text.encode()
        with bounded():
            Sonnets().read(str(file), columns={}, limit=None, separator="<|endoftext|>")

    target()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=9)
    | st.sampled_from(["0", "1", "a", "#### 1 000", "", " ", "user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "messages", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "id",
    "split",
    "text",
    "question",
    "answer",
    "sentence",
    "label",
    "sentence1",
    "sentence2",
    "is_duplicate",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "system",
    "preferred_output",
    "non_preferred_output",
    "sentiment",
]
TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SEEDS: list[dict[str, Any]] = [
    {"question": "q", "answer": "a #### 5"},
    {"sentence": "s", "label": 1},
    {"instruction": "i", "output": "o"},
    TALK,
    {"sentence1": "a", "sentence2": "b", "is_duplicate": 0},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"text": "t"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    {"prompt": "p", "completion": "c"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]
ROW = st.builds(
    lambda seed, more: {**seed, **more},
    st.sampled_from(SEEDS),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2),
)


@pytest.mark.parametrize(
    "task",
    [
        Text(),
        QuestionAnswering(),
        QuestionAnswering(empty="count"),
        Paraphrase(),
        Sentiment(labels=("0", "1")),
        SST2(),
        GSM8K(),
        Sonnets(),
    ],
    ids=lambda task: task.name,
)
def test_tasks(task: Any, tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "a.jsonl", byte_level()

    @fuzzed
    @given(st.lists(ROW, min_size=1, max_size=4))
    def target(rows: list[dict[str, Any]]) -> None:
        file.write_text("\n".join(json.dumps(row) for row in rows))
        with bounded():
            found = task.read(str(file), columns={}, limit=None, separator="<|endoftext|>")
            examples, _ = task.encode(found, tokenizer, 64)
            assert all(len(e) <= 64 for e in examples)
        with bounded():
            found = task.read(str(file), columns={}, limit=None, separator="<|endoftext|>")
            split_rows(found, task.split_by, {"train": 0.7, "valid": 0.3})

    target()


@pytest.mark.parametrize("count", ["error", "count"])
@pytest.mark.parametrize("kind", ["instructions", "preferences"])
def test_conversations(kind: str, count: Any, tmp_path: Path) -> None:
    file, template = tmp_path / "a.jsonl", ChatTemplate.named("turns", byte_level())

    @fuzzed
    @given(st.lists(ROW, min_size=1, max_size=4))
    def target(rows: list[dict[str, Any]]) -> None:
        file.write_text("\n".join(json.dumps(row) for row in rows))
        with bounded():
            if kind == "instructions":
                encode_conversations(read_instructions(str(file), empty=count), template, 64, on_empty=count)
            else:
                encode_pairs(read_preferences(str(file), empty=count, equal=count), template, 64, on_empty=count)

    target()


@fuzzed
@given(st.text(alphabet=st.sampled_from("0123456789 ,.'$-{}\\#/e+_:\u00a0\u2212x\n"), max_size=30))
def test_numbers(text: str) -> None:
    with bounded():
        for find in (strict_answer, flexible_answer, gold_answer):
            number = find(text)
            assert number is None or number.is_finite()
