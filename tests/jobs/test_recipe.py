from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.verbs.table import RECIPES, recipe
from tests.reference.toy_recipe import Lora, Toy


def test_a_report_is_strict_json_and_tables_for_people(tmp_path: Path) -> None:
    report = Report(
        {"a": float("inf"), "path": Path("x"), "config": Lora(rank=2)}, (facts("Title", [("n", "[/b] 3")]), "a line")
    )
    assert json.loads(report.to_json())["a"] is None
    assert json.loads(report.to_json())["config"]["rank"] == 2
    report.write(tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == json.loads(report.to_json())
    shown = io.StringIO()
    report.show(Console(file=shown, width=40))
    assert [line.strip() for line in shown.getvalue().splitlines()] == ["Title", "n  [/b] 3", "a line"]


def test_a_session_speaks_on_stderr_and_streams_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    session = Display()
    session.say("one", "two")
    session.write("text")
    got = capsys.readouterr()
    assert (got.out, got.err) == ("text", "one\ntwo\n")


def test_a_silent_session_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    session = Display.silent()
    session.say("one")
    session.console.print("two")
    session.write("text")
    got = capsys.readouterr()
    assert (got.out, got.err) == ("", "")
    assert session.quiet and not session.progress


def test_common_fields_are_checked() -> None:
    toy = build(Toy, {})
    assert (toy.out, toy.seed, toy.device, toy.dtype) == (None, 0, "auto", "auto")
    with pytest.raises(ConfigError, match="'dtype'"):
        build(Toy, {"dtype": "fp12"})


def test_the_table_leads_to_recipes_and_nowhere_else() -> None:
    assert issubclass(recipe("info"), Recipe)
    assert list(RECIPES)[0] == "demo"
    with pytest.raises(KeyError):
        recipe("nothing")
