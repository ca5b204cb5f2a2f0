"""``--print-example``: each verb reads the file that it prints, as it is and with every commented default put in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from limbeck.command.example import PLANS
from limbeck.command.verb import schema
from limbeck.config import parse
from limbeck.study.fit import read_search
from limbeck.study.study import read_plan
from tests.reference.commands import Limbeck

VERBS = [verb for verb in schema()["verbs"] if verb not in PLANS]


@pytest.mark.parametrize("verb", VERBS)
def test_the_verb_reads_its_example(limbeck: Limbeck, tmp_path: Path, verb: str) -> None:
    text = limbeck(verb, "--print-example").out
    whole = re.sub(r"^( *)# (?=\"?\w+\"?:)", r"\1", text, flags=re.MULTILINE)
    parts = [text, whole]
    resolved = []
    for name, part in zip(("example", "whole"), parts, strict=True):
        file = tmp_path / f"{name}.yaml"
        file.write_text(part, encoding="utf-8")
        said = limbeck(verb, "--config", file, "--print-config", "--json")
        assert said.code == 0, said.err
        resolved.append(json.loads(said.out))
    assert resolved[0] == resolved[1], "a line that is commented out is no default"
    assert verb in ("demo", "doctor") or parse(text, "the example"), "nothing is set"
    assert all(line.lstrip().startswith("#") or re.match(r" *\"?\w+\"?:", line) for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120


def test_the_example_of_a_verb_sets_what_its_help_shows(limbeck: Limbeck) -> None:
    values = parse(limbeck("finetune", "--print-example").out, "the example")
    assert values == {
        "model": "gpt2", "data": "qa.csv", "task": {"kind": "qa"}, "techniques": [{"kind": "lora", "rank": 8}],
        "out": "runs/qa",
    }  # fmt: skip


def test_plans_are_read(limbeck: Limbeck, tmp_path: Path) -> None:
    for verb, read in (("study", read_plan), ("fit", read_search)):
        said = limbeck(verb, "--print-example")
        (tmp_path / f"{verb}.yaml").write_text(said.out, encoding="utf-8")
        assert read(tmp_path / f"{verb}.yaml").title and said.code == 0
        assert sum(line.lstrip().startswith("#") for line in said.out.splitlines()) >= 8


@pytest.mark.slow
def test_the_plans_run(limbeck: Limbeck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("study", "fit"):
        (tmp_path / f"{verb}.yaml").write_text(limbeck(verb, "--print-example").out, encoding="utf-8")
    said = limbeck("study", "study.yaml", "--out", "runs/study", "--json")
    assert said.code == 0, said.err
    assert set(json.loads(said.out)["arms"]) == {"teacher", "student", "rounded/bits=8", "rounded/bits=4"}
    made = limbeck("pretrain", "--data", "toy:stories", "--preset", "toy", "--steps", 20, "--out", "runs/tiny")
    assert made.code == 0, made.err
    said = limbeck("fit", "fit.yaml", "--out", "runs/fit", "--json")
    assert said.code == 0 and json.loads(said.out)["fits"], said.err
