"""Every module says what it offers, and every public thing says what it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import limbeck

MODULES = sorted(m.name for m in pkgutil.walk_packages(limbeck.__path__, "limbeck."))
LEAVES = [m.name for m in pkgutil.walk_packages(limbeck.__path__, "limbeck.") if not m.ispkg]
PACKAGES = sorted(set(MODULES) - set(LEAVES))
WITH_LM_EVAL = {f"limbeck.integrations.{name}" for name in ("harness", "lm_eval", "local_tasks")}


def test_there_are_modules_to_look_at() -> None:
    assert {"limbeck.cli", "limbeck.model.decoder"} <= set(LEAVES)


def imported(name: str) -> ModuleType:
    if name in WITH_LM_EVAL:
        pytest.importorskip("lm_eval")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", LEAVES)
def test_every_module_offers_names_that_exist_and_are_documented(name: str) -> None:
    module = imported(name)
    assert (module.__doc__ or "").strip(), "the module has no docstring"
    offered = module.__all__
    assert len(set(offered)) == len(offered)
    for public in offered:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (thing.__doc__ or "").strip(), f"{public} has no docstring"
            if thing.__module__ == name and inspect.isclass(thing):
                bare = [
                    method
                    for method, value in vars(thing).items()
                    if not method.startswith("_")
                    and inspect.isfunction(value)
                    and not inspect.getdoc(getattr(thing, method))
                ]
                assert bare == [], f"{public}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("name", LEAVES)
def test_every_public_definition_is_offered(name: str) -> None:
    module = imported(name)
    defined = {
        public
        for public, thing in vars(module).items()
        if not public.startswith("_")
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == name
    }
    assert defined <= set(module.__all__), "public in name, but not in __all__"


CALLABLE = "limbeck.study"
"""The one package with code: it is the public function of its name too."""


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != CALLABLE])
def test_packages_hold_nothing(name: str) -> None:
    """What a package's ``__init__`` imported would be imported for everybody; import from the defining module."""
    file = importlib.import_module(name).__file__
    assert file is not None
    body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) for node in body)


def test_the_package_that_can_be_called_imports_none_of_ours() -> None:
    file = importlib.import_module(CALLABLE).__file__
    assert file is not None and callable(limbeck.study)
    nodes = list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert froms | names == {"__future__", "importlib", "sys", "types", "typing"}


def test_no_class_name_stands_for_two_things() -> None:
    homes: dict[str, list[str]] = {}
    for file in sorted(Path(limbeck.__file__).parent.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(file))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
