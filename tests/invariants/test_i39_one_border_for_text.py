"""I39: line ends, NaN, null, surrogates, numbers and booleans are settled once, for every reader; by the commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.reference.commands import Limbeck, Said, refused
from tests.reference.small_model import saved

FAST = (
    "--batch-size", "2", "--steps", "1", "--dtype", "fp32", "--probes", "off", "--audit", "off",
    "--fractions", "1,0,0", "--no-generate", "--json",
)  # fmt: skip
MEASURE = ("--probes", "off", "--no-generate", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "start", context=512)


def lines(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def done(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def poem(i: int, end: str) -> str:
    return end.join(f"the {name} of night {i} is far away" for name in ("sun", "moon", "rain", "wind"))


def test_line_ends_change_no_figure(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    figures = []
    for end in ("\n", "\r\n", "\r"):
        poems = [poem(i, end) for i in range(4)]
        (tmp_path / "a.txt").write_bytes(f"{end}<|endoftext|>{end}".join(poems).encode())
        (tmp_path / "a.csv").write_bytes(("text" + end + "".join(f'"{p}"{end}' for p in poems)).encode())
        lines(tmp_path, [{"text": p} for p in poems], "a.jsonl")
        (tmp_path / "a.json").write_text(json.dumps(poems))
        for name in ("a.txt", "a.csv", "a.jsonl", "a.json"):
            found = done(limbeck("evaluate", model, "--task", "text", "--data", tmp_path / name, *MEASURE))
            figures.append((found["metrics"]["nats per token"]["value"], found["data"]["all"]["rows"]))
    assert figures == [figures[0]] * 12 and figures[0][1] == 4


QA = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(12)]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None])
def test_values_that_are_none_are_refused_by_row_or_counted(
    value: Any, model: Path, tmp_path: Path, limbeck: Limbeck
) -> None:
    rows = [dict(row) for row in QA]
    rows[5]["question"] = rows[7]["answer"] = value
    asked = ("evaluate", model, "--task", "qa", "--data", lines(tmp_path, rows), *MEASURE)
    refused(limbeck(*asked), "2 of 12 rows", "rows:6, rows:8")
    found = done(limbeck(*asked, "--qa.empty", "count"))
    assert found["metrics"]["nats per token"]["items"] == 10 and found["notes"]["dropped_rows"] == 2
    pairs = [{"sentence1": f"{i} runs", "sentence2": f"{i} goes", "is_duplicate": float(i % 2)} for i in range(12)]
    pairs[5]["sentence2"] = value
    found = done(limbeck("evaluate", model, "--task", "paraphrase", "--data", lines(tmp_path, pairs), *MEASURE))
    assert found["metrics"]["accuracy"]["items"] == 11 and found["notes"]["dropped_rows"] == 1


def test_half_a_surrogate_pair_is_replaced_and_told(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    rows = [dict(row) for row in QA]
    rows[5]["answer"] = "It is \ud83d"
    asked = ("evaluate", model, "--task", "qa", "--data", lines(tmp_path, rows), *MEASURE)
    said = limbeck(*asked)
    found = done(said)
    assert found["metrics"]["nats per token"]["items"] == 12
    assert "U+FFFD (rows:6)" in found["data"]["all"]["read"][0] and "U+FFFD" in said.err


def test_nested_values_are_refused_by_row(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    rows = [*QA, {"question": ["why"], "answer": "so"}]
    said = limbeck("evaluate", model, "--task", "qa", "--data", lines(tmp_path, rows), *MEASURE)
    refused(said, "row rows:13 ", "has a list in its field 'question', where text is wanted")


TALK = {"instruction": "Say hi", "input": "", "output": "Hi!"}
PAIR = {"prompt": "Say hi", "chosen": "Hi!", "rejected": "No"}
ASKED = {"from": "human", "value": "hi"}
SHARED = {"conversations": [ASKED, {"from": "gpt", "value": "ho"}]}
SPOKEN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
UNSPOKEN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}


@pytest.mark.parametrize(
    ("verb", "task", "good", "bad"),
    [
        ("finetune", "instructions", TALK, {**TALK, "output": None}),
        ("finetune", "instructions", TALK, {**TALK, "instruction": None}),
        ("finetune", "instructions", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}),
        ("finetune", "instructions", SHARED, {"conversations": None}),
        ("finetune", "instructions", SHARED, {"conversations": [ASKED, {"from": "gpt", "value": None}]}),
        ("finetune", "instructions", SPOKEN, UNSPOKEN),
        ("dpo", "preferences", PAIR, {**PAIR, "rejected": None}),
        ("dpo", "preferences", PAIR, {**PAIR, "chosen": None}),
        ("dpo", "preferences", PAIR, {**PAIR, "chosen": None, "rejected": None}),
        ("dpo", "preferences", PAIR, {**PAIR, "prompt": None}),
    ],
)
def test_null_answers_are_refused_by_row_or_counted(
    verb: str, task: str, good: dict[str, Any], bad: dict[str, Any], model: Path, tmp_path: Path, limbeck: Limbeck
) -> None:
    rows = [good, good, bad, good]
    asked = (verb, "--model", model, "--task", task, "--data", lines(tmp_path, rows), "--out", tmp_path / "run", *FAST)
    refused(limbeck(*asked), "row rows:3 ", "set empty=count")
    found = done(limbeck(*asked, f"--{task}.empty", "count"))["data"]["train"]
    assert (found["rows"], found["dropped"], found["dropped_ids"]) == (3, 1, ["rows:3"])


def test_json_lines_named_json_are_read_as_what_they_are(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    file = lines(tmp_path, [TALK] * 4, "rows.json")
    asked = ("finetune", "--model", model, "--task", "instructions", "--data", file, "--out", tmp_path / "run", *FAST)
    found = done(limbeck(*asked))["data"]["train"]
    assert found["rows"] == 4 and found["read"] == [f"{file}: JSON lines"]


@pytest.mark.parametrize("labels", [("1_0", "10"), ("01", "02"), ("0.0", "1.0"), ("true", "false"), ("-1", "+1")])
def test_class_names_are_kept_as_given(labels: tuple[str, str], model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    (tmp_path / "a.csv").write_text("sentence,label\n" + "".join(f"it ran {i},{labels[i % 2]}\n" for i in range(8)))
    given = ("--model", model, "--task", "sentiment", "--data", tmp_path / "a.csv")
    asked = ("finetune", *given, "--out", tmp_path / "run")
    done(limbeck(*asked, f"--sentiment.labels={','.join(labels)}", *FAST))
    found = done(limbeck("evaluate", tmp_path / "run", "--task", "sentiment", "--data", tmp_path / "a.csv", *MEASURE))
    assert found["protocol"]["labels"] == list(labels)
    assert found["notes"]["classes"]["true"] == dict.fromkeys(labels, 4)
    said = limbeck(*asked[:-1], tmp_path / "b", "--sentiment.labels", "a,a", *FAST)
    refused(said, "each class needs a name of its own")


def test_booleans_are_classes(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    rows = [{"sentence1": f"{i} runs", "sentence2": f"{i} goes", "is_duplicate": i % 3 == 0} for i in range(6)]
    found = done(limbeck("evaluate", model, "--task", "paraphrase", "--data", lines(tmp_path, rows), *MEASURE))
    assert found["notes"]["classes"]["true"] == {"0": 4, "1": 2}
