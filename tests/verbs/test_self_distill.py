"""``limbeck self-distill`` end to end on the toy pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.load import load_bundle, save_bundle
from tests.reference.commands import Limbeck, refused
from tests.reference.task_models import small, tokenizer

FLAGS = (
    "--data", "toy:paraphrase", "--limit", 120, "--epochs", 1, "--precision", "fp32", "--rounds", 1, "--contexts", 12,
    "--samples", 2, "--max-new-tokens", 12, "--mutual", -50, "--cosine", -1, "--length-ratio", 0, "--edit-most", 1,
    "--least-words", 1, "--least-yield", 0, "--soft-samples", 4, "--soft-tokens", 6,
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tok: Tokenizer = tokenizer()
    save_bundle(small(), tok, tmp_path / "base")
    return tmp_path / "base"


def test_rounds_arms_figure_and_report(limbeck: Limbeck, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "run"
    said = limbeck("self-distill", "--model", model, "--out", out, "--save-generator", *FLAGS, "--json")
    assert said.code == 0, said.err
    values = json.loads(said.out)
    assert list(values["table"]) == ["plain", "generator", "mix", "soft"]
    assert len({row["steps"] for row in values["table"].values()}) == 1
    assert values["rounds"][0]["rounds"][0]["filters"][0]["name"] == "length"
    assert "arms on" in said.err and "no difference shown" in said.err or "is better" in said.err
    page = (out / "epochs.html").read_text()
    assert "accuracy on validation rows" in page and page.count('"name":"plain"') == 2
    assert load_bundle(str(out / "model")).model.config.layers == 2
    assert {f.name for f in (out / "scores").iterdir()} == {f"{a}-0.jsonl" for a in values["table"]}
    again = limbeck("self-distill", "--model", model, "--out", out, "--save-generator", *FLAGS, "--json")
    assert json.loads(again.out) == values and "is finished" in again.err


def test_arms_may_be_left_out_but_never_plain_fine_tuning(limbeck: Limbeck, tmp_path: Path, model: Path) -> None:
    said = limbeck("self-distill", "--model", model, "--out", tmp_path / "run", *FLAGS, "--arms", "soft", "--json")
    values = json.loads(said.out)
    assert list(values["table"]) == ["plain", "soft"] and values["rounds"] == [None]


def test_bad_input(limbeck: Limbeck, tmp_path: Path, model: Path) -> None:
    base = ("self-distill", "--model", model, "--out", tmp_path / "run", *FLAGS)
    refused(limbeck(*base, "--patience", 2), "equal steps")
    refused(limbeck(*base, "--fractions", "1,0,0"), "measured by epoch")
    refused(limbeck(*base, "--dtype", "fp16"), "fp16")
    refused(limbeck(*base, "--arms", "magic"), "magic")
