from __future__ import annotations

import ast
from pathlib import Path

import pytest

import limbeck
from limbeck.data.toy.table import TOYS
from limbeck.formats.families.table import FAMILIES
from limbeck.measure.figures import FIGURES, explained
from limbeck.tasks.table import TASKS
from limbeck.techniques.table import TECHNIQUES
from limbeck.verbs.table import RECIPES
from tests.reference.tiny_runs import run


def test_names_of_tables() -> None:
    assert set(run("list", what="toy")["names"]) == {f"toy:{name}" for name in TOYS}
    assert run("list", what="tasks")["names"].keys() == TASKS.keys()
    found = run("list", what="techniques")["names"]
    assert found.keys() == TECHNIQUES.keys() and all(found.values())


def test_families_verbs_and_figures() -> None:
    assert run("list", what="families")["names"].keys() == FAMILIES.keys()
    verbs = run("list", what="verbs")["names"]
    assert verbs.keys() == RECIPES.keys() and all(verbs.values())
    assert run("list", what="figures")["names"] == FIGURES


def named_figures() -> set[str]:
    """Names that ``Statistic``, ``ratio``, ``mean`` and ``share`` are given; what differs is ``x``."""
    out = set()
    for file in Path(limbeck.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            kind, given = node.func.id, {k.arg: k.value for k in node.keywords}
            place = {"Statistic": 0, "share": 1, "_exp_of": 1}.get(kind)
            if kind in ("ratio", "mean"):
                value = given.get("name") or (node.args[0] if kind == "mean" else None)
            else:
                value = node.args[place] if place is not None and len(node.args) > place else None
            if isinstance(value, ast.Constant):
                out.add(str(value.value))
            elif isinstance(value, ast.JoinedStr):
                out.add("".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in value.values))
    return out


COMPOSED = {"nats per x", "x perplexity"}
"""``nats per word`` and ``word perplexity``, which are explained by their whole names."""


def test_every_figure_is_explained() -> None:
    names = named_figures()
    assert {"nats per token", "ended", "bleu", "distinct-x", "perplexity", "perfect sonnets"} <= names
    assert [name for name in sorted(names) if not explained(name) and name not in COMPOSED] == []
    assert explained("distinct-2") and explained("nats at 0 to 31") and not explained("acc_norm")


def test_runs_below_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("list", what="runs")["names"] == {}
    for name, done in (("a", True), ("study/arm/seed-0", False)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("seed: 0\n", encoding="utf-8")
        if done:
            (folder / "report.json").write_text("{}", encoding="utf-8")
    assert run("list", what="runs")["names"] == {"runs/a": "finished", "runs/study/arm/seed-0": "not finished"}
