"""I36: reports hold what ran (context, new tokens, cuts), not what was asked, and raise an alarm above a tenth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.decode.settings import Decoding
from limbeck.jobs.reports.limits import clamped, cut_alarms, cuts, unlike
from limbeck.tasks.fitting import Fitting
from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.instructions import Instructions
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.sonnets import Sonnets
from limbeck.tasks.task import Measuring, Task
from tests.reference.commands import Limbeck, Said
from tests.reference.small_model import saved
from tests.reference.task_models import small, tokenizer

LONG = "KEY is the name. " + "The dog ran to the park. " * 12
TRAIN = ("--batch-size", "2", "--steps", "1", "--dtype", "fp32", "--probes", "off", "--audit", "off", "--no-generate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "start", context=128)


def done(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def questions(folder: Path, *texts: str) -> Path:
    file = folder / "qa.jsonl"
    rows = ({"question": f"{i} {text}", "answer": f"KEY{i}"} for i, text in enumerate(texts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def fired(found: dict[str, Any]) -> dict[str, float]:
    return {a["name"]: a["value"] for a in found["alarms"] if a["fired"]}


def test_prompts_cut_and_new_tokens_limited_are_reported(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    said = limbeck("evaluate", model, "--task", "qa", "--data", questions(tmp_path, *[LONG] * 6), "--json")
    found = done(said)
    assert found["protocol"]["prompts_cut"] == found["notes"]["prompts_cut"] == 6
    assert found["protocol"]["decoding"]["max_new_tokens"] == 64  # of the 120 asked for: half of the context
    assert fired(found)["cut-prompts"] == 1 and fired(found)["limited-tokens"] == 1 - 64 / 120
    assert "6 of 6 prompts lost their beginning" in said.err and "at most 64 new tokens were written" in said.err


def test_what_fits_is_silent(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    asked = ("evaluate", model, "--task", "qa", "--data", questions(tmp_path, *["the cat?"] * 3), "--json")
    found = done(limbeck(*asked, "--decoding.max-new-tokens", 20))
    assert found["protocol"]["decoding"]["max_new_tokens"] == 20 and "prompts_cut" not in found["protocol"]
    assert not fired(found).keys() & {"cut-prompts", "limited-tokens", "cut-items"} and not found["notes"]["told"]


def test_a_context_beyond_the_model_is_said(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    data = questions(tmp_path, *["the cat?"] * 12)
    asked = ("--task", "qa", "--data", data, "--context", 100_000, "--no-generate", "--json")
    said = limbeck("evaluate", model, *asked)
    sentence = "ran with a context of 128 tokens, the model's own, not the 100000 asked for"
    assert done(said)["protocol"]["context"] == 128 and sentence in " ".join(said.err.split())
    said = limbeck("finetune", "--model", model, *asked, "--out", tmp_path / "run", *TRAIN)
    assert any(sentence in told for told in done(said)["notes"]["told"]) and sentence in " ".join(said.err.split())


def test_validation_and_test_with_different_contexts_are_told(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    data = questions(tmp_path, *["the cat?"] * 12)
    asked = ("finetune", "--model", model, "--task", "qa", "--data", data, "--context", 40, "--json", *TRAIN)
    (told,) = done(limbeck(*asked, "--out", tmp_path / "a"))["notes"]["told"]
    assert "validation ran with a context of 40 tokens and the test rows with 128" in told
    found = done(limbeck(*asked, "--out", tmp_path / "b", "--measuring.context", 40))
    assert found["protocol"]["context"] == 40 and not found["notes"]["told"]
    found = done(limbeck(*asked, "--out", tmp_path / "c", "--fractions", "1,0,0"))
    assert not found["notes"]["told"] and "metrics" not in found


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (QuestionAnswering(), "toy:qa"),
        (GSM8K(), "toy:sums"),
        (Instructions(), "toy:instructions"),
        (Sonnets(), "toy:verse"),
    ],
)
def test_every_task_that_writes_says_what_ran(task: Task, rows: str) -> None:
    """The decoding of the protocol never goes beyond half of the context, and cut prompts are those that are longer."""
    model = small(context=40)
    data = task.read(rows, columns={}, limit=3, separator="<|endoftext|>")
    asked = task.decoding().model_copy(update={"max_new_tokens": 30})
    found = task.evaluate(model, tokenizer(), data, Measuring(), asked)
    ran = found.protocol["decoding"]["max_new_tokens"]
    assert ran <= 20 and found.notes["prompts"] == len(found.scores)
    assert 0 <= found.notes["prompts_cut"] <= len(found.scores)
    assert found.notes.get("new_tokens", ran) == ran


def test_the_counts_of_a_fitting() -> None:
    model, prompts = small(context=40), [[5] * n for n in (10, 20, 21, 39)]
    fitting = Fitting.of(model, Decoding(max_new_tokens=30), prompts)
    assert fitting.notes() == {"prompts": 4, "prompts_cut": 2, "new_tokens": 20, "new_tokens_asked": 30}
    assert Fitting.of(model, Decoding(max_new_tokens=1), prompts).notes() == {"prompts": 4, "prompts_cut": 0}
    beyond = Fitting.of(model, Decoding(max_new_tokens=90, beyond_context=True), prompts)
    assert beyond.decoding.max_new_tokens == 90 and beyond.prompts_cut == 0


def test_a_tenth_is_where_alarms_begin() -> None:
    at, above = ({"rows": 20, "truncated": n, "too_long": 0, "prompts": 20, "prompts_cut": n} for n in (2, 3))
    assert [a.fired for a in cut_alarms(at, 20)] == [False, False]
    assert [a.fired for a in cut_alarms(above, 20)] == [True, True]
    assert [a.value for a in cut_alarms({"truncated": 1}, 4)] == [0.25] and cut_alarms({}, 4) == []
    assert cuts(above) == {"rows_cut": 3, "prompts_cut": 3} and cuts({"truncated": 0}) == {}


def test_sentences_of_contexts() -> None:
    assert clamped(None, 8, "x") == clamped(8, 8, "x") == clamped(8, None, "x") == []
    report = {"protocol": {"context": 8}, "evaluated": "test"}
    assert unlike(8, report, True) == unlike(4, report, False) == unlike(4, report | {"protocol": {}}, True) == []
