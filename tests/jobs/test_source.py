"""What reads data, measures a task or opens a model is declared once, whichever verb has it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import limbeck
from limbeck.config import build
from limbeck.data.dialect import Dialect
from limbeck.errors import DataError
from limbeck.jobs.measured_task import MeasuredTask
from limbeck.jobs.recipe import default_folder
from limbeck.jobs.source import Reading
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.text import Text
from limbeck.verbs.table import RECIPES, recipe

SOURCE = Path(limbeck.__file__).parent
ONCE = {"columns": "Reading", "separator": "Reading", "measuring": "MeasuredTask", "keep_codes": "ModelSource"}
ELSEWHERE = {("separator", "CorpusSource"), ("measuring", "SelfDistillationOptions")}
"""A corpus has a separator of its own; self-distillation has one task, which nothing generates for."""


def declared() -> dict[str, set[str]]:
    """Return option -> the classes of jobs, verbs and study that declare it."""
    out: dict[str, set[str]] = defaultdict(set)
    for file in (f for room in ("jobs", "verbs", "study") for f in (SOURCE / room).rglob("*.py")):
        for kind in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)):
            for line in kind.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and "Field" in ast.dump(line):
                    out[line.target.id].add(kind.name)
    return out


def test_shared_options_are_declared_once() -> None:
    found = declared()
    for option, owner in ONCE.items():
        assert found[option] - {kind for name, kind in ELSEWHERE if name == option} == {owner}, option


def test_every_verb_that_reads_tables_reads_them_alike() -> None:
    for verb in RECIPES:
        fields = recipe(verb).model_fields
        if "columns" in fields:
            assert {"separator", "dialect", "limit"} <= set(fields) and issubclass(recipe(verb), Reading), verb


def test_rows_are_read_as_told(tmp_path: Path) -> None:
    table = tmp_path / "rows.txt"
    table.write_text("q|answer\none|1\ntwo|2\nthree|3\n", encoding="utf-8")
    file = tmp_path / "rows.csv"
    file.write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
    how = Reading(columns={"question": "q"}, dialect=Dialect(delimiter="|"), limit=2)
    rows = how.rows(str(file), QuestionAnswering())
    assert [row.fields["question"] for row in rows] == ["one", "two"]
    assert len(how.rows(str(file), QuestionAnswering(), whole=True)) == 3
    assert [row.fields["answer"] for row in how.rows(str(file), None)] == ["1", "2"]
    with pytest.raises(DataError, match="absent.csv does not exist"):
        how.rows(str(tmp_path / "absent.csv"), None)


def test_what_is_generated_is_as_asked_else_as_the_task_does() -> None:
    assert MeasuredTask().generates() == Text().decoding()
    asked = build(MeasuredTask, {"decoding": {"max_new_tokens": 3}})
    assert asked.generates(7).max_new_tokens == 3 and asked.generates(7).seed != asked.generates().seed


def test_a_run_without_a_folder_is_named_after_its_values() -> None:
    one, same, other = (build(recipe("finetune"), {"model": "m", "data": "d", "seed": seed}) for seed in (0, 0, 1))
    assert default_folder(one) == default_folder(same) != default_folder(other)
    assert default_folder(one).parent == Path("runs") and default_folder(one).name.startswith("finetune-")
