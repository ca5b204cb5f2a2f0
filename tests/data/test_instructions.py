"""Instructions and conversations: the formats, several turns, what is learned, and what gives way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.chat import ChatTemplate, Message
from limbeck.data.instructions import encode_conversations, read_instructions, turns_of
from limbeck.errors import DataError, NothingToLearnError
from tests.reference.small_tokenizer import byte_level

TOK = byte_level()
U, A, S = "user", "assistant", "system"


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def rows_of(folder: Path, *rows: dict[str, Any], **options: Any) -> Any:
    file = folder / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_instructions(str(file), **options)


FORMS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "alpaca": ({"instruction": "add", "input": "1 2", "output": "3"}, [(U, "add\n\n1 2"), (A, "3")]),
    "alpaca without input": ({"instruction": "add", "input": "", "output": "3"}, [(U, "add"), (A, "3")]),
    "alpaca without the field": ({"instruction": "add", "output": "3"}, [(U, "add"), (A, "3")]),
    "completion": ({"prompt": "add ", "completion": " 3"}, [(U, "add "), (A, " 3")]),
    "messages": (talk((S, "be"), (U, "a"), (A, "b"), (U, "c"), (A, "d")),
                 [(S, "be"), (U, "a"), (A, "b"), (U, "c"), (A, "d")]),
    "messages that end with a question": (talk((U, "a"), (A, "b"), (U, "c")), [(U, "a"), (A, "b")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_format_is_read_alike(name: str, tmp_path: Path) -> None:
    raw, turns = FORMS[name]
    (row,) = rows_of(tmp_path, raw)
    assert turns_of(row) == tuple(Message(*turn) for turn in turns)
    assert row.fields["answer"] == turns[-1][1]
    assert row.fields["prompt"] == "\n\n".join(text for _, text in turns[:-1])


GOOD = {"instruction": "add", "output": "3"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (talk((U, "a"), (A, "b")), "mixes formats: row talks:2 has the format 'messages', and those before it"),
        ({"instruction": "add"}, "row talks:2 .* is no instruction in a known format"),
        ({**GOOD, "output": " "}, "row talks:2 .* has an empty answer"),
        ({**GOOD, "output": {"a": 3}}, "row talks:2 .* has a dict in its field 'output'"),
        ({**GOOD, "input": ["x"]}, "row talks:2 .* has a list in its field 'input'"),
    ],
)
def test_bad_rows_are_named(bad: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        rows_of(tmp_path, GOOD, bad)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"messages": []}, "is no list of messages"),
        ({"messages": "hello"}, "is no list of messages"),
        (talk((U, "a")), "has an empty answer, or none"),
        (talk((U, "a"), (A, ""), (U, "b"), (A, "c")), "has an empty answer"),
        (talk(("bot", "a")), "role 'bot'"),
    ],
)
def test_bad_conversations_are_named(bad: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        rows_of(tmp_path, bad)
    assert "talks:1" in str(caught.value)


def test_empty_answers_are_counted_where_told(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, GOOD, {**GOOD, "output": ""}, empty="count")
    assert len(rows) == 1 and rows.dropped == ("talks:2",)
    with pytest.raises(DataError, match="no row of .* has an answer"):
        rows_of(tmp_path, {**GOOD, "output": ""}, empty="count")


TURNS = talk((U, "the cat sat on the mat"), (A, "and the dog"), (U, "ran"), (A, "to the end"))


def test_every_turn_of_the_assistant_is_learned_with_its_end(tmp_path: Path) -> None:
    (example,), report = encode_conversations(rows_of(tmp_path, TURNS), ChatTemplate.named("turns", TOK), 200)
    learned = example.ids[example.target].tolist()
    first, second = TOK.encode(" and the dog"), TOK.encode(" to the end")
    assert learned == [*first, TOK.eos_id, *second, TOK.eos_id]
    assert TOK.decode(example.ids.tolist()) == (
        "User: the cat sat on the mat\n\nAssistant: and the dog\n\nUser: ran\n\nAssistant: to the end"
    )
    assert report.target_tokens == len(learned) and report.truncated == ()


def test_what_gives_way(tmp_path: Path) -> None:
    rows, template = rows_of(tmp_path, TURNS), ChatTemplate.named("bare", TOK, begin=True)
    (whole,), _ = encode_conversations(rows, template, 200)
    start = whole.target.tolist().index(True)
    context = len(whole) - 2
    for truncate, given in (("prompt_left", whole.ids[3:start]), ("prompt_right", whole.ids[1 : start - 2])):
        (cut,), report = encode_conversations(rows, template, context, truncate=truncate)  # type: ignore[arg-type]
        assert cut.ids.tolist() == [TOK.bos_id, *given.tolist(), *whole.ids[start:].tolist()]
        assert cut.target.tolist() == [False] * (len(given) + 1) + whole.target[start:].tolist()
        assert report.truncated == ("talks:1",)
    (cut,), _ = encode_conversations(rows, template, context, truncate="answer_right")
    assert cut.ids.tolist() == whole.ids[:context].tolist() and cut.target.tolist() == whole.target[:context].tolist()
    with pytest.raises(DataError, match="1 are longer than"):
        encode_conversations(rows, template, context, truncate="drop")
    with pytest.raises(NothingToLearnError, match="row talks:1 .* has no answer left"):
        encode_conversations(rows, template, start, truncate="answer_right")
    with pytest.raises(DataError, match="1 have no target"):
        encode_conversations(rows, template, start, truncate="answer_right", on_empty="count")


@pytest.mark.realdata
def test_the_public_instructions_are_read(real_data: Path) -> None:
    rows = read_instructions(str(real_data / "alpaca" / "alpaca_merged.json"), empty="count")
    assert len(rows) + len(rows.dropped) == 18659
