"""Preference pairs: the public formats, what is no pair, and both sides as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.batch import Example
from limbeck.data.batches import Batches
from limbeck.data.chat import ChatTemplate, Message
from limbeck.data.pairs import collate_pairs, encode_pairs, pair_of
from limbeck.data.preferences import read_preferences, turns_before
from limbeck.data.prompts import Truncate
from limbeck.errors import DataError, NothingToLearnError
from tests.reference.small_tokenizer import byte_level

TOK = byte_level()
U, A = "user", "assistant"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], str, str]] = {
    "dialogues": (
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant: so.",
         "rejected": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant: go away"},
        [(U, "hi"), (A, "yes?"), (U, "why")], "so.", "go away",
    ),
    "dialogues, one speaker twice": (
        {"chosen": "\n\nHuman: hi\n\nAssistant: a\n\nAssistant: b", "rejected": "\n\nHuman: hi\n\nAssistant: c"},
        [(U, "hi")], "a\n\nb", "c",
    ),
    "outputs": (
        {"input": {"messages": [message("system", "be brief"), message(U, "why")]},
         "preferred_output": [message(A, "so")], "non_preferred_output": [message(A, "go away")]},
        [("system", "be brief"), (U, "why")], "so", "go away",
    ),
    "system and question": (
        {"system": "be brief", "question": "why", "chosen": "so", "rejected": "go"},
        [("system", "be brief"), (U, "why")], "so", "go",
    ),
    "question, no system": (
        {"system": "", "question": "why", "chosen": "so", "rejected": "go"}, [(U, "why")], "so", "go",
    ),
    "instruction": (
        {"instruction": "add", "input": "1 2", "output": "3", "chosen": "3", "rejected": "4"},
        [(U, "add\n\n1 2")], "3", "4",
    ),
    "instruction without input": (
        {"instruction": "add", "input": "", "chosen": "3", "rejected": "4"}, [(U, "add")], "3", "4",
    ),
    "plain": ({"prompt": "why ", "chosen": " so", "rejected": "go"}, [(U, "why ")], " so", "go"),
    "message lists": (
        {"prompt": [message(U, "why")], "chosen": [message(A, "so")], "rejected": [message(A, "go")]},
        [(U, "why")], "so", "go",
    ),
    "whole message lists": (
        {"chosen": [message(U, "why"), message(A, "so")], "rejected": [message(U, "why"), message(A, "go")]},
        [(U, "why")], "so", "go",
    ),
}  # fmt: skip


def file_of(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_read_alike(name: str, tmp_path: Path) -> None:
    raw, before, chosen, rejected = ROWS[name]
    (row,) = read_preferences(file_of(tmp_path, raw))
    assert row.id == "pairs:1"
    assert turns_before(row) == tuple(Message(*turn) for turn in before)
    assert (row.fields["chosen"], row.fields["rejected"]) == (chosen, rejected)
    assert row.fields["prompt"] == "\n\n".join(text for _, text in before)


def test_other_columns_are_renamed(tmp_path: Path) -> None:
    file = file_of(tmp_path, {"q": "why", "good": "so", "bad": "go"})
    (row,) = read_preferences(file, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert row.fields["rejected"] == "go"


PLAIN = {"prompt": "why", "chosen": "so", "rejected": "go"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ROWS["dialogues"][0], "mixes formats: row pairs:2 has the format 'dialogues'"),
        ({"prompt": "why", "chosen": "so"}, "row pairs:2 .* is no preference pair in a known format"),
        ({"prompt": "why", "chosen": "so", "rejected": None}, "row pairs:2 .* has nothing in its field 'rejected'"),
        ({**PLAIN, "rejected": " so "}, "row pairs:2 .* has equal sides"),
        ({**PLAIN, "chosen": " \n"}, "row pairs:2 .* has an empty answer on its chosen side"),
        ({**PLAIN, "rejected": ""}, "row pairs:2 .* has an empty answer on its rejected side"),
        ({**PLAIN, "chosen": ["so"]}, "row pairs:2 .* is no preference pair"),
    ],
)
def test_bad_rows_are_named(bad: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_preferences(file_of(tmp_path, PLAIN, bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: other\n\nAssistant: c"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"),
        ("\n\nAssistant: b", "\n\nAssistant: c"),
    ],
)
def test_dialogues_must_part_at_the_last_answer(chosen: str, rejected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row pairs:1 .* is no pair"):
        read_preferences(file_of(tmp_path, {"chosen": chosen, "rejected": rejected}))


def test_message_lists_hold_one_answer(tmp_path: Path) -> None:
    raw = {"prompt": [message(U, "why")], "chosen": [message(U, "so")], "rejected": [message(A, "go")]}
    with pytest.raises(DataError, match="field 'chosen' of row pairs:1 .* must hold one message, of the assistant"):
        read_preferences(file_of(tmp_path, raw))


def test_equal_and_empty_answers_are_counted_where_told(tmp_path: Path) -> None:
    file = file_of(tmp_path, PLAIN, {**PLAIN, "rejected": "so"}, {**PLAIN, "chosen": ""}, {**PLAIN, "prompt": "when"})
    rows = read_preferences(file, equal="count", empty="count")
    assert [row.id for row in rows] == ["pairs:1", "pairs:4"] and rows.dropped == ("pairs:2", "pairs:3")
    with pytest.raises(DataError, match="equal sides"):
        read_preferences(file, empty="count")
    with pytest.raises(DataError, match="empty answer"):
        read_preferences(file, equal="count")
    with pytest.raises(DataError, match="no row of .* is a pair of two different answers"):
        read_preferences(file_of(tmp_path, {**PLAIN, "rejected": "so"}), equal="count")


def encoded(folder: Path, row: dict[str, Any], context: int, truncate: Truncate = "prompt_left", **options: Any) -> Any:
    template = ChatTemplate.named("bare", TOK, begin=options.pop("begin", None))
    return encode_pairs(read_preferences(file_of(folder, row)), template, context, truncate=truncate, **options)


LONG = {"prompt": "the cat sat on the mat and", "chosen": " the dog ran", "rejected": " the end"}
PROMPT, CHOSEN, REJECTED = (TOK.encode(LONG[key]) for key in ("prompt", "chosen", "rejected"))
END = [TOK.eos_id]


def test_completions_and_their_ends_are_the_targets(tmp_path: Path) -> None:
    (pair,), report = encoded(tmp_path, LONG, 64, begin=True)
    assert pair.ids.tolist() == [TOK.bos_id, *PROMPT, *CHOSEN, *END]
    assert pair.rejected.ids.tolist() == [TOK.bos_id, *PROMPT, *REJECTED, *END]
    assert pair.ids[pair.target].tolist() == CHOSEN + END
    assert pair.rejected.ids[pair.rejected.target].tolist() == REJECTED + END
    assert (report.tokens, report.target_tokens) == (pair.tokens, len(CHOSEN + REJECTED) + 2)
    assert report.truncated == () and pair.width == max(len(pair), len(pair.rejected))


@pytest.mark.parametrize("begin", [False, True])
def test_a_long_prompt_gives_way_alike_on_both_sides(begin: bool, tmp_path: Path) -> None:
    first = [TOK.bos_id] if begin else []
    longest = max(len(CHOSEN), len(REJECTED)) + 1
    context = len(first) + longest + 3
    for truncate, kept in (("prompt_left", PROMPT[-3:]), ("prompt_right", PROMPT[:3])):
        (pair,), report = encoded(tmp_path, LONG, context, truncate, begin=begin)  # type: ignore[arg-type]
        assert pair.ids.tolist() == first + kept + CHOSEN + END
        assert pair.rejected.ids.tolist() == first + kept + REJECTED + END
        assert report.truncated == ("pairs:1",) and pair.width == context


def test_a_prompt_that_fills_the_context_is_an_error_or_counted(tmp_path: Path) -> None:
    context = len(PROMPT)
    with pytest.raises(NothingToLearnError, match="row pairs:1 .* has no answer left on a side"):
        encoded(tmp_path, LONG, context, "answer_right")
    with pytest.raises(DataError, match="no pair of .* is left .* 0 are longer than .* 1 have no target"):
        encoded(tmp_path, LONG, context, "answer_right", on_empty="count")
    with pytest.raises(DataError, match="1 are longer than"):
        encoded(tmp_path, LONG, context, "drop")
    short = {**LONG, "prompt": "the"}
    rows = read_preferences(file_of(tmp_path, LONG, short))
    pairs, report = encode_pairs(rows, ChatTemplate.named("bare", TOK), context, truncate="drop")
    assert [p.id for p in pairs] == ["pairs:2"] and report.too_long == ("pairs:1",)


def test_an_answer_that_does_not_fit_loses_its_end(tmp_path: Path) -> None:
    (pair,), report = encoded(tmp_path, LONG, 3)
    assert pair.ids.tolist() == [PROMPT[-1], *CHOSEN[:2]] and pair.targets == 4 and report.truncated == ("pairs:1",)


def test_keys_tell_rows_and_tokens_apart(tmp_path: Path) -> None:
    (pair,), _ = encoded(tmp_path, LONG, 64)
    (same,), _ = encoded(tmp_path, LONG, 64)
    (cut,), _ = encoded(tmp_path, LONG, 8)
    (turned,), _ = encoded(tmp_path, {**LONG, "chosen": LONG["rejected"], "rejected": LONG["chosen"]}, 64)
    assert pair.key == same.key and len({pair.key, cut.key, turned.key}) == 3
    assert all(p.key.startswith("pairs:1#") for p in (pair, cut, turned))


@pytest.mark.parametrize("how", [{}, {"packing": True}, {"bucketing": True}])
def test_batches_hold_each_pair_once_with_both_sides(how: dict[str, bool]) -> None:
    rows = read_preferences("toy:preferences", limit=30)
    pairs, _ = encode_pairs(rows, ChatTemplate.named("turns", TOK), 600)
    stream = Batches(pairs, batch_size=4, context=600, pad_id=0, collate_fn=collate_pairs, **how)  # type: ignore[arg-type]
    seen: list[str] = []
    for i in range(stream.per_epoch):
        batch = stream.at(i)
        seen += batch.keys
        joined, sequence = batch.joined()
        tokens = batch.completion_tokens()
        for p, key in enumerate(batch.keys):
            pair = next(one for one in pairs if one.key == key)
            for s, side in enumerate((pair, pair.rejected)):
                mine = joined.real & (sequence == s * batch.pairs + p)
                assert joined.ids[mine].tolist() == side.ids.tolist()
                assert int(tokens[p, s]) == side.predictions
        assert set(joined.row_ids[joined.real].tolist()) == {pair.row for pair in pairs if pair.key in batch.keys}
    assert sorted(seen) == sorted(pair.key for pair in pairs)
    facts = stream.describe()
    assert facts["tokens"] == sum(p.tokens for p in pairs) and facts["target_tokens"] == sum(p.targets for p in pairs)
    assert 0 < facts["padding_share"] < 1


def test_an_example_with_one_answer_is_no_pair() -> None:
    with pytest.raises(DataError, match="row r has one answer"):
        pair_of(Example(0, "r", np.array([1, 2], dtype=np.int32), np.array([False, True])))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "rows", "dropped"),
    [
        ("hh_harmless-base_test.jsonl", 2312, 1),
        ("orca_dpo_pairs_validation.jsonl", 283, 0),
        ("rasbt_instruction-data-with-preference.json", 1100, 1),
    ],
)
def test_the_public_files_are_read(real_data: Path, file: str, rows: int, dropped: int) -> None:
    found = read_preferences(str(real_data / "preference" / file), equal="count", empty="count")
    assert len(found) + len(found.dropped) >= rows and len(found.dropped) >= dropped
    assert all(turns_before(row)[-1].role == "user" for row in found)
