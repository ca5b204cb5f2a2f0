"""``limbeck list``: the names that other verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from rich.text import Text

from limbeck.data.toy.table import TOYS
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.run import Run
from limbeck.tasks.table import TASKS
from limbeck.techniques.table import describe

__all__ = ["Listing"]


class Listing(Recipe):
    """List toy data sets, tasks, techniques, or the runs below a folder."""

    verb: ClassVar[str] = "list"
    summary: ClassVar[str] = "list toy data, tasks, techniques or runs"

    what: Literal["toy", "tasks", "techniques", "runs"] = Field(
        description="what to list", json_schema_extra={"positional": True}
    )
    folder: str = Field("runs", description="folder to look for runs in")

    def run(self, session: Display) -> Report:
        """Return the names with a line on each."""
        if self.what == "toy":
            named = {f"toy:{name}": "" for name in TOYS}
        elif self.what == "tasks":
            named = {name: _first_line(kind) for name, kind in TASKS.items()}
        else:
            named = describe() if self.what == "techniques" else _runs(Path(self.folder))
        body = facts(self.what, named.items()) if named else Text(f"no runs in {self.folder}")
        return Report({"verb": self.verb, "what": self.what, "names": named}, (body,))


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _runs(folder: Path) -> dict[str, str]:
    """Return the runs at most two folders below ``folder``, with the verb and the state of each."""
    files = [file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/recipe.yaml")]
    out = {}
    for path in sorted(file.parent for file in files):
        out[str(path)] = "finished" if Run.open(path).finished else "not finished"
    return out
