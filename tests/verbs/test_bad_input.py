"""Bad input of every stage by its command: one sentence and exit code 2, or counted in the report where told so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.data.chat import ChatTemplate, Message
from tests.reference.commands import Limbeck, Said
from tests.reference.commands import refused as told_refused
from tests.reference.small_model import saved
from tests.reference.small_tokenizer import byte_level
from tests.reference.tiny_runs import PRETRAIN

FAST = (
    "--batch-size", "2", "--steps", "1", "--dtype", "fp32", "--probes", "off", "--audit", "off",
    "--fractions", "1,0,0",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "start", context=128)


def refused(said: Said, *parts: str) -> None:
    """As any refusal, and nothing on stdout."""
    told_refused(said, *parts)
    assert said.out == ""


def done(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


PAIR = {"prompt": "why", "chosen": " so it is", "rejected": " go away"}
TALK = {"instruction": "why", "output": "so it is"}
OTHER = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]}
PAIRS = ("dpo", "preferences", PAIR)
TALKS = ("finetune", "instructions", TALK)


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def given(verb: str, task: str, model: Path, folder: Path, *rows: dict[str, Any]) -> tuple[object, ...]:
    what = ("--task", task, "--data", file_of(folder, *rows))
    return (verb, "--model", model, *what, "--out", folder / "run", "--no-generate", *FAST)


@pytest.mark.parametrize(
    ("verb", "task", "good", "bad", "parts"),
    [
        (*PAIRS, {**PAIR, "rejected": PAIR["chosen"]}, ("equal sides", "remove it, or set equal=count")),
        (*PAIRS, {**PAIR, "chosen": " \n"}, ("an empty answer on its chosen side", "set empty=count")),
        (*PAIRS, {**PAIR, "rejected": ""}, ("an empty answer on its rejected side", "set empty=count")),
        (*PAIRS, {**PAIR, "prompt": [{"role": "user", "content": "why"}]}, ("no preference pair in a known format",)),
        (*PAIRS, {"question": "why", "chosen": "so", "rejected": "go"}, ("mixes formats", "put them in two files")),
        (*TALKS, {**TALK, "output": " "}, ("an empty answer", "set empty=count")),
        (*TALKS, OTHER, ("mixes formats", "put them in two files")),
        (*TALKS, PAIR, ("no instruction in a known format",)),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    verb: str, task: str, good: dict[str, Any], bad: dict[str, Any], parts: tuple[str, ...],
    model: Path, tmp_path: Path, limbeck: Limbeck,
) -> None:  # fmt: skip
    refused(limbeck(*given(verb, task, model, tmp_path, good, bad)), "rows:2", *parts)
    assert not (tmp_path / "run").exists()


def test_a_line_cut_short_is_named(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    told = given("dpo", "preferences", model, tmp_path, PAIR, PAIR)
    file = tmp_path / "rows.jsonl"
    os.truncate(file, file.stat().st_size - 9)
    refused(limbeck(*told), "rows.jsonl", "2")


@pytest.mark.parametrize(
    ("verb", "task", "rows", "counted"),
    [
        (*PAIRS[:2], (PAIR, {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "chosen": ""}, PAIR), ("equal", "empty")),
        (*TALKS[:2], (TALK, {**TALK, "output": ""}, {**TALK, "output": "\n"}, TALK), ("empty",)),
    ],
)
def test_bad_rows_are_counted_where_told(
    verb: str, task: str, rows: tuple[dict[str, Any], ...], counted: tuple[str, ...],
    model: Path, tmp_path: Path, limbeck: Limbeck,
) -> None:  # fmt: skip
    flags = [part for name in counted for part in (f"--{task}.{name}", "count")]
    found = done(limbeck(*given(verb, task, model, tmp_path, *rows), *flags, "--json"))["data"]
    assert found["train"]["rows"] == found["encoding"]["rows"] == found["encoding"]["examples"] == 2
    assert found["train"]["dropped"] == 2 and found["train"]["dropped_ids"] == ["rows:2", "rows:3"]


def lengths(task: str, row: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the longest side's whole row, as the default template lays them out."""
    template = ChatTemplate.named("turns", byte_level())
    before = (Message("user", str(row.get("prompt") or row["instruction"])),)
    sides = [row["chosen"], row["rejected"]] if task == "preferences" else [row["output"]]
    whole = [len(template.encode((*before, Message("assistant", side)))[0]) for side in sides]
    return len(template.prompt_ids(before)), max(whole)


@pytest.mark.parametrize("truncate", ["prompt_left", "prompt_right", "answer_right", "drop"])
@pytest.mark.parametrize(("verb", "task", "good"), [PAIRS, TALKS])
def test_a_prompt_longer_than_the_context_gives_way_as_told_and_is_counted(
    verb: str, task: str, good: dict[str, Any], truncate: str, model: Path, tmp_path: Path, limbeck: Limbeck
) -> None:
    field = "prompt" if task == "preferences" else "instruction"
    long = {**good, field: "why " * 60}
    context = lengths(task, good)[1] + 2
    assert lengths(task, long)[0] > context
    told = (*given(verb, task, model, tmp_path, good, long), "--context", context, f"--{task}.truncate", truncate)
    if truncate == "answer_right":
        refused(limbeck(*told), "row rows:2 ", "no answer left", f"context of {context} tokens", "truncate=prompt_left")
        found = done(limbeck(*told, f"--{task}.empty", "count", "--json"))["data"]["encoding"]
    else:
        found = done(limbeck(*told, "--json"))["data"]["encoding"]
    cut = {"answer_right": "empty", "drop": "too_long"}.get(truncate, "truncated")
    assert {k: found[k] for k in ("truncated", "too_long", "empty")} == {
        "truncated": 0, "too_long": 0, "empty": 0, cut: 1,
    }  # fmt: skip
    assert found[f"{cut}_ids"] == ["rows:2"] and found["rows"] == 2
    assert found["examples"] == (2 if cut == "truncated" else 1)
    alarms = json.loads((tmp_path / "run" / "report.json").read_text())["alarms"]
    rung = [a for a in alarms if a["name"] == "cut-rows" and a["fired"]]
    assert bool(rung) == (cut != "empty")  # half of the rows


def test_a_file_of_long_prompts_alone_is_one_sentence(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    long = {**PAIR, "prompt": "why " * 60}
    told = given("dpo", "preferences", model, tmp_path, long, long)
    said = limbeck(*told, "--context", 24, "--preferences.truncate", "drop")
    refused(said, "no pair of", "of 2, 2 are longer than 24 tokens", "raise the context or cut prompts")


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["data", "header", "empty"])
def test_a_shard_cut_short_is_named(
    cut: str, tmp_path: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    corpora = {"verse": {"data": "toy:verse", "valid": "toy:stories", "valid_limit": 4}}
    values = {k: v for k, v in PRETRAIN.items() if k != "data"} | {
        "corpora": corpora, "shards": str(tmp_path / "shards"), "probes": "off", "audit": "off", "dry_run": True,
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    told = ("pretrain", "--config", file, "--out", tmp_path / "run")
    assert limbeck(*told).code == 0
    shard = next((tmp_path / "shards").rglob("00000.shard"))
    os.truncate(shard, {"data": shard.stat().st_size - 2, "header": 20, "empty": 0}[cut])
    refused(limbeck(*told), str(shard), "delete")
