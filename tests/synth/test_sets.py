"""Answers through the filters of their kind, and a local model as a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.data.chat import TEMPLATES
from limbeck.data.rows import Row, Rows
from limbeck.formats.load import Bundle
from limbeck.synth.collect import Asking, collect
from limbeck.synth.datasheet import Datasheet
from limbeck.synth.ledger import Ledger
from limbeck.synth.local import LocalTeacher
from limbeck.synth.prompts import KINDS, Plan
from limbeck.synth.sets import Sifting, figures, filters_of, write_set
from limbeck.synth.teacher import Prices, Sampling
from limbeck.synth.yields import sift
from tests.reference.task_models import small, tokenizer
from tests.synth.test_filters import SONNET


def pair(name: str, a: str, b: str, **more: str) -> Row:
    return Row(name, {"sentence1": a, "sentence2": b, "prompt": "Write two sentences.", "unread": "", **more})


def test_each_kind_has_its_filters_in_order() -> None:
    dev = Rows.of([Row("d", {"sentence1": "What do owls eat?", "sentence2": "What is the food of owls?"})], "dev")
    rows = Rows.of(
        [
            pair("good", "How do I learn to cook rice well?", "What is the best way to learn to cook rice?"),
            pair("unread", "", "", unread="prose in place of a JSON object"),
            pair("copy", "How do I learn to play chess well?", "How do I learn to play chess well"),
            pair("number", "How many of the 7 seas have you seen?", "How many of the 8 seas have you seen so far?"),
            pair("again", "How do I learn to cook rice well?", "What is the best way to learn to cook rice?"),
            pair("leak", "What do owls eat?", "What do owls usually like to eat?"),
            pair("no", "I'm sorry, but I cannot help with that.", "I'm sorry, but that is not possible."),
        ],
        "made",
    )
    found = sift(rows, filters_of(KINDS["paraphrase"], Sifting(), {"dev": dev}))
    assert [row.id for row in found.kept] == ["good"]
    by = {name: filter_name for name, (filter_name, _) in found.dropped.items()}
    assert by == {
        "unread": "format", "copy": "edit distance", "number": "numbers", "again": "duplicates", "leak": "overlap",
        "no": "refusal",
    }  # fmt: skip
    names = [one.name for one in filters_of(KINDS["sonnets"], Sifting(language="any", echo_words=0), {})]
    assert names == ["format", "refusal", "verse", "duplicates"]
    assert "prompt echo" not in [one.name for one in filters_of(KINDS["restate"], Sifting(), {})]


def test_a_set_is_written_as_its_task_reads_it(tmp_path: Path) -> None:
    rows = Rows.of([Row("s0", {"text": SONNET, "prompt": "p", "unread": ""}), Row("s1", {"text": "no verse"})], "made")
    kind = KINDS["sonnets"]
    rates = figures(kind, rows)
    assert rates["perfect sonnets"].startswith("50.0 % [9.5, 90.5], 1 of 2") and figures(KINDS["qa"], rows) == {}
    found = sift(rows, filters_of(kind, Sifting(), {}))
    write_set(tmp_path, kind, Datasheet("made", "nobody", "sonnets", "", "a test", found, figures=rates))
    (line,) = (tmp_path / "data.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "s0", "text": SONNET}
    assert json.loads((tmp_path / "datasheet.json").read_text())["yield"]["kept"] == 1
    pairs = sift(Rows.of([pair("p", "a b c", "d e f")], "made"), [])
    write_set(tmp_path, KINDS["paraphrase"], Datasheet("made", "nobody", "paraphrase", "", "a test", pairs))
    assert json.loads((tmp_path / "data.jsonl").read_text())["is_duplicate"] == 1


@pytest.mark.parametrize("chat", [False, True])
def test_a_local_model_is_a_teacher_through_the_same_interface(tmp_path: Path, chat: bool) -> None:
    tok = tokenizer().with_chat_template(TEMPLATES["turns"]) if chat else tokenizer()
    plan = Plan(
        KINDS["sonnets"], 3, sampling=Sampling(max_tokens=8), prompt="Of {theme}", system="Say.",
        variety={"theme": ["cats", "owls", "more than fits " * 60]},
    )  # fmt: skip
    told = []
    for folder in ("a", "b"):
        with Ledger(tmp_path / folder / "answers.sqlite", json.dumps(plan.describe())) as ledger:
            teacher = LocalTeacher(Bundle(small(), tok, {}, "small"), "small")
            asking = Asking(concurrency=1 if folder == "a" else 3)
            found = collect(plan, teacher, ledger, asking, Prices(output_price=1.0))
            told.append(ledger.answers())
    assert told[0] == told[1] and len(told[0]) == 2  # the answers do not depend on the concurrency
    assert found.totals.refused == 1 and 0 < found.totals.answer_tokens <= 16 and found.totals.cost > 0
    ids = LocalTeacher(Bundle(small(), tok, {}, "small"), "small").prompt_ids(plan.request(0))
    assert ("User:" in tok.decode(ids)) == chat and "Say." in tok.decode(ids)
