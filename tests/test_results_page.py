"""The page of results tells every run's command, and the command gives the run's values again."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from limbeck.cli import main
from limbeck.config import build, dump
from limbeck.verbs.table import recipe

ROOT = Path(__file__).resolve().parents[1]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES: list[tuple[str, dict[str, Any]]] = [
    ("evaluate", {"model": "a base", "data": "toy:sentiment", "task": {"kind": "sentiment", "labels": ["no", "yes"]}}),
    (
        "evaluate",
        {
            "model": "m",
            "data": "d",
            "measuring": {"generate": False},
            "decoding": {"temperature": 1, "top_p": 0.9, "stop": ["\n"]},
        },
    ),
    ("finetune", {"model": "m", "data": "d.csv", "columns": {"text": "body"}, "packing": True, "dtype": "bf16"}),
    (
        "finetune",
        {
            "model": "m",
            "data": "d",
            "techniques": [{"kind": "depth", "layers": 2}, {"kind": "lora", "rank": 2, "targets": ["q", "v"]}],
            "train": {"steps": 3, "learning_rate": 1e-3, "schedule": "cosine"},
        },
    ),
    ("distill", {"teacher": "t", "data": "d", "on": "all", "beta": 0.1081}),
    ("pretrain", {"corpora": {"it's": {"data": '$a `b` \\ "c".txt', "weight": 0.5}}, "context": 64, "tokens": 9}),
]


@pytest.mark.parametrize(("verb", "values"), CASES, ids=range(len(CASES)))
def test_a_command_gives_the_values_again(
    verb: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = yaml.safe_load(dump(build(recipe(verb), values, "case")))
    line = " ".join(script().quoted(word) for word in script().command_words(verb, wanted))
    words = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    words = words.stdout.split("\0")[:-1]
    assert main([*words, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == wanted


def test_defaults_need_no_words() -> None:
    values = yaml.safe_load(dump(build(recipe("evaluate"), {"model": "m", "data": "d"}, "case")))
    assert script().command_words("evaluate", values) == ["evaluate", "m", "--data", "d"]
