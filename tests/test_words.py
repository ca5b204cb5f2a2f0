"""The rule of words (CONTRIBUTING.md): plain English in help, messages and pages, and one name for one thing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "raw" not in p.parts and p.stem != "lab-notes"),
]
DIALECT = {
    r"\b(rings|ringing|rang)\b": "an alarm fires",
    r"\b(is|are|was|were|not|when|otherwise) told(?! (from|apart))\b": "say what is set, printed or measured",
    r"\btells? (classes|it|its)\b": "has a classification head; shows; prints",
    r"\bstands? beside\b": "is next to, is compared with",
    r"\b(kept|keeps?) silent\b": "passed",
    r"\bwhat is (looked for|told)\b": "name the thing",
    r"\bput beside\b": "load with",
}
"""Pattern -> what to write instead."""

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def dialect(text: str) -> list[str]:
    """Return the expressions of a text that are on the list, each with what to write instead."""
    found = [(m[0], better) for pattern, better in DIALECT.items() for m in re.finditer(pattern, text, re.IGNORECASE)]
    return [f"'{words}': {better}" for words, better in found]


def descriptions(value: Any) -> Iterator[str]:
    """Yield every help text within the schema."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("description", "summary") and isinstance(inner, str):
                yield inner
            yield from descriptions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from descriptions(inner)


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module that are no docstrings: messages, help, headings."""
    with_docs = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, with_docs)]
    docs = {id(n.value) for body in bodies for n in body if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_help_is_in_plain_english() -> None:
    schema = json.loads((ROOT / "src" / "limbeck" / "schema.json").read_text(encoding="utf-8"))
    texts = list(dict.fromkeys(descriptions(schema)))
    assert len(texts) > 300
    assert {text: found for text in texts if (found := dialect(text))} == {}


def test_messages_are_in_plain_english() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {text}": words
        for file in SOURCES
        for text in messages(ast.parse(file.read_text(encoding="utf-8")))
        if (words := dialect(text))
    }
    assert found == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_are_in_plain_english(page: Path) -> None:
    assert dialect(FENCE.sub("", page.read_text(encoding="utf-8"))) == []


def test_dialect_is_found() -> None:
    tree = ast.parse('"""It rings."""\ndef f():\n    """Rang."""\n    raise ValueError("the alarm rings")\n')
    assert list(messages(tree)) == ["the alarm rings"]
    assert dialect("the alarm rings; strings, a range, told") == ["'rings': an alarm fires"]


def classes() -> dict[str, list[str]]:
    """Return the name of each public class -> the modules that define it."""
    found: dict[str, list[str]] = {}
    for file in SOURCES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(file.relative_to(ROOT / "src").with_suffix("").as_posix())
    return found


def test_no_class_name_stands_for_two_things() -> None:
    assert {name: files for name, files in classes().items() if len(files) > 1} == {}
