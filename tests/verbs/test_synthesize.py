"""``limbeck synthesize``: from the command line, against a real server, a local model, and a set that is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reference.commands import Limbeck, refused
from tests.reference.small_model import saved
from tests.reference.teacher_server import Server, serving
from tests.synth.test_filters import SONNET

PAIR = '{"sentence1": "How do I learn to cook rice?", "sentence2": "What is the best way to learn to cook rice?"}'


def told(said: object) -> dict[str, object]:
    values: dict[str, object] = json.loads(said.out)  # type: ignore[attr-defined]
    return values


def test_a_set_from_an_endpoint_with_datasheet_and_cost(limbeck: Limbeck, tmp_path: Path) -> None:
    flags = (
        "--input-price",
        1,
        "--output-price",
        2,
        "--licence",
        "CC0-1.0",
        "--count",
        5,
        "--concurrency",
        2,
        "--json",
    )
    with serving(Server(text=PAIR)) as server:
        said = limbeck(
            "synthesize", "paraphrase", "--endpoint", server.url, "--model", "poet", "--out", tmp_path, *flags
        )
        assert said.code == 0, said.err
        values = told(said)
        again = limbeck(
            "synthesize", "paraphrase", "--endpoint", server.url, "--model", "poet", "--out", tmp_path, *flags
        )
    assert sum(server.billed.values()) == 5 and told(again)["asking"]["sent"] == 0  # type: ignore[index]
    (row,) = (tmp_path / "data.jsonl").read_text().splitlines()  # the other four say the same
    assert json.loads(row) == {"id": "paraphrase:000000", **json.loads(PAIR), "is_duplicate": 1}
    assert values["cost"] == pytest.approx(5 * 50e-6) and values["licence"] == "CC0-1.0"
    assert values["asking"]["done"] == 5 and values["yield"]["kept"] == 1  # type: ignore[index]
    sheet = (tmp_path / "datasheet.md").read_text()
    assert "- Teacher: poet" in sheet and "- Licence: CC0-1.0" in sheet and "| duplicates | 5 | 4 |" in sheet
    assert json.loads((tmp_path / "synthesis.json").read_text())["config"]["model"] == "poet"


def test_prose_in_place_of_json_is_counted_not_fatal(limbeck: Limbeck, tmp_path: Path) -> None:
    with serving(Server(text="A balance sheet lists what a firm owns.")) as server:
        said = limbeck(
            "synthesize", "qa", "--endpoint", server.url, "--model", "m", "--out", tmp_path, "--count", 3, "--json"
        )
    values = told(said)
    assert said.code == 0 and values["yield"]["kept"] == 0 and values["cost"] is None  # type: ignore[index]
    assert "prose in place of a JSON object" in (tmp_path / "dropped.jsonl").read_text()


def test_a_dry_run_tells_the_price_and_asks_nobody(limbeck: Limbeck, tmp_path: Path) -> None:
    with serving(Server()) as server:
        said = limbeck(
            "synthesize", "sonnets", "--endpoint", server.url, "--model", "m", "--dry-run", "--count", 10,
            "--output-price", 10, "--max-tokens", 400,
        )  # fmt: skip
    assert said.code == 0 and not server.headers and not list(tmp_path.iterdir())
    assert (
        "10" in said.err
        and "price" in said.err
        and "at most 0.0400 USD" in said.err
        and "Write one new sonnet" in said.err
    )


def test_a_local_model_is_asked_without_a_server(limbeck: Limbeck, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", context=256)
    flags = ("--prompt", "Of {theme}", "--system", "Say", "--count", 3, "--max-tokens", 8, "--json")
    said = limbeck("synthesize", "sonnets", "--model", model, "--out", tmp_path / "out", *flags)
    values = told(said)
    assert said.code == 0 and values["asking"]["done"] == 3 and values["cost"] is None  # type: ignore[index]


def test_a_set_that_is_there_is_filtered(limbeck: Limbeck, tmp_path: Path) -> None:
    poems, dev = tmp_path / "poems.json", tmp_path / "dev.json"
    stolen = SONNET.replace("willow", "cedar")
    poems.write_text(json.dumps([SONNET, stolen, "Roses are red"]))
    said = limbeck("synthesize", "sonnets", "--answers", poems, "--out", tmp_path / "a", "--json")
    values = told(said)
    assert said.code == 0 and values["yield"]["kept"] == 1  # type: ignore[index]
    assert values["figures"]["perfect sonnets"].startswith("66.7 %")  # type: ignore[index]
    dev.write_text(json.dumps([stolen]))
    said = limbeck("synthesize", "sonnets", "--answers", poems, "--against", dev, "--out", tmp_path / "b")
    assert said.code == 0 and "overlap" in said.err and "kept 0.0 %" in said.err
    assert (tmp_path / "b" / "data.jsonl").read_text() == ""


def test_a_budget_that_stops_says_so(limbeck: Limbeck, tmp_path: Path) -> None:
    with serving(Server(text=SONNET)) as server:
        said = limbeck(
            "synthesize", "sonnets", "--endpoint", server.url, "--model", "m", "--out", tmp_path, "--count", 50,
            "--output-price", 1000, "--max-tokens", 100, "--budget", 0.3,
        )  # fmt: skip
    assert said.code == 0 and "the budget allows no further request" in said.err and sum(server.billed.values()) < 50


def test_bad_input_is_one_sentence(limbeck: Limbeck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    far = ("--endpoint", "https://teacher.invalid/v1", "--model", "m", "--out", tmp_path / "out")
    refused(limbeck("synthesize", "qa", *far), "OPENAI_API_KEY holds no key for https://teacher.invalid/v1")
    refused(limbeck("synthesize", "qa", *far, "--prompt", "Of {colour}"), "unknown field 'colour'")
    refused(limbeck("synthesize", "qa", *far, "--budget", 1), "a budget needs prices")
    refused(limbeck("synthesize", "qa", "--model", "m"), "say where with 'out'")
    refused(limbeck("synthesize", "qa", "--out", tmp_path), "name a teacher with 'model', or rows to filter")
    refused(limbeck("synthesize", "poems", "--model", "m", "--out", tmp_path), "poems")
    refused(limbeck("synthesize", "restate", *far), "give texts for it")
    refused(limbeck("synthesize", "qa", *far, "--variety", "theme= |"), "holds no values")
    near = ("--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--out", tmp_path / "near", "--attempts", 1)
    said = limbeck("synthesize", "qa", *near)
    assert said.code == 1 and "http://127.0.0.1:9/v1 cannot be reached" in said.err
    with serving(Server(key="right")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-of-mine")
        said = limbeck("synthesize", "qa", "--endpoint", server.url, "--model", "m", "--out", tmp_path / "wrong")
    assert said.code == 1 and "refuses the key" in said.err and "wrong-key-of-mine" not in said.err
    assert not any(b"wrong-key-of-mine" in f.read_bytes() for f in (tmp_path / "wrong").rglob("*") if f.is_file())
