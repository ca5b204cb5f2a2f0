"""``limbeck list``: the names that other verbs take."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from rich.text import Text

from limbeck.data.toy.table import TOYS
from limbeck.formats.families.table import FAMILIES
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.measure.figures import FIGURES
from limbeck.run import Run
from limbeck.tasks.table import TASKS
from limbeck.techniques.table import describe

__all__ = ["Listing"]


class Listing(Recipe):
    """List toy data, tasks, techniques, families of models, figures, verbs, or the runs below a folder."""

    verb: ClassVar[str] = "list"
    summary: ClassVar[str] = "list toy data, tasks, techniques, families, figures, verbs or runs"

    what: Literal["toy", "tasks", "techniques", "families", "figures", "verbs", "runs"] = Field(
        description="what to list", json_schema_extra={"positional": True}
    )
    folder: str = Field("runs", description="folder to look for runs in")

    def run(self, session: Display) -> Report:
        """Return the names with a line on each."""
        named = _runs(Path(self.folder)) if self.what == "runs" else _TABLES[self.what]()
        body = facts(self.what, named.items()) if named else Text(f"no runs in {self.folder}")
        return Report({"verb": self.verb, "what": self.what, "names": named}, (body,))


def _toys() -> dict[str, str]:
    return {f"toy:{name}": "" for name in TOYS}


def _tasks() -> dict[str, str]:
    return {name: _first_line(kind) for name, kind in TASKS.items()}


def _families() -> dict[str, str]:
    """Return the published layouts that are read and written, each by its ``model_type``."""
    return {name: f"config.json with model_type {name}" for name in FAMILIES}


def _verbs() -> dict[str, str]:
    """Return the verbs of the committed schema, as ``limbeck --help`` does: importing all takes seconds."""
    schema = json.loads(files("limbeck").joinpath("schema.json").read_text(encoding="utf-8"))
    return {name: about["summary"] for name, about in schema["verbs"].items()}


_TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "toy": _toys,
    "tasks": _tasks,
    "techniques": describe,
    "families": _families,
    "figures": lambda: dict(FIGURES),
    "verbs": _verbs,
}


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _runs(folder: Path) -> dict[str, str]:
    """Return the runs at most two folders below ``folder``, with the verb and the state of each."""
    files = [file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/recipe.yaml")]
    out = {}
    for path in sorted(file.parent for file in files):
        out[str(path)] = "finished" if Run.open(path).finished else "not finished"
    return out
