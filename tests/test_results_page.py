"""The page of results tells every run's command, and the command gives the run's values again."""

from __future__ import annotations

import importlib.util
import json
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


TABLE = """# Two ways

**nats per token (lower is better) on 9 test items, toy**

| arm | seeds | figure | 95 % interval | change against one | parameters |
|---|---:|---:|---:|---:|---:|
| one | 1 | 2.5 | [2.4, 2.6] | reference | 10 |
| two | 1 | 2.4 | [2.3, 2.5] | -0.1 [-0.2, 0.0] | 10 |

| arm | nats per word |
|---|---:|
| one | 3.5 [3.4, 3.6] |
"""


def finished(folder: Path) -> Path:
    """Return the folder of a study of two arms that has run."""
    arms = {}
    for name in ("one", "two"):
        run = folder / name / "seed-0"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text("{model: m, data: d}")
        machine = {"cpu": "a processor", "cores": 2, "memory_bytes": 2**34, "threads": 1}
        origin = {"machine": machine, "versions": {"torch": "2", "python": "3"}, "source": {"commit": "abcdef"}}
        (run / "provenance.json").write_text(json.dumps(origin))
        arms[name] = {"label": name, "runs": [{"run": str(run), "verb": "evaluate"}]}
    (folder / "study.json").write_text(json.dumps({"seeds": [0], "arms": arms}))
    (folder / "study.md").write_text(TABLE)
    return folder


def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, *more: str) -> Path:
    folder, page = finished(tmp_path / "a folder"), tmp_path / "docs" / "ways.md"
    (tmp_path / "verdict.md").write_text(verdict)
    command = f"limbeck study two.yaml --out {folder}"
    given = ["--command", command, "--question", "Which?", "--verdict", str(tmp_path / "verdict.md")]
    monkeypatch.setattr("sys.argv", ["results_page.py", str(folder), str(page), *given, *more])
    script().main()
    return page


def test_a_page_has_question_table_and_verdict_and_the_rest_is_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write(tmp_path, monkeypatch, "Neither.", "--arm", "two")
    text = page.read_text()
    head = "| arm | figure, 95 % interval | change against one |\n|---|---:|---:|"
    table = f"{head}\n| two | 2.4 [2.3, 2.5] | -0.1 [-0.2, 0.0] |"
    assert text.startswith(f"# Two ways\n\n**Question.** Which?\n\n{table}\n\n**Verdict.** Neither.\n\n")
    assert "Commit abcdef; a processor, 2 cores" in text and "--out runs/a folder" in text and "](raw/ways.md)" in text
    raw = (page.parent / "raw" / "ways.md").read_text()
    assert raw.startswith("# Two ways: raw tables\n\nThe question, one table and the verdict are on [its page](../")
    assert TABLE.partition("\n")[2].strip() in raw and "limbeck evaluate m --data d" in raw


def test_a_page_that_is_too_long_or_names_no_arm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        write(tmp_path / "long", monkeypatch, "word " * 600)
    assert "and 600 are allowed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no row of the study is called 'three'"):
        write(tmp_path / "arm", monkeypatch, "Neither.", "--arm", "three")
