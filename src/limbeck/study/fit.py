"""``limbeck fit``: the best model under limits, with every limit measured again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.config import build, read
from limbeck.errors import RunError
from limbeck.formats.hub import resolve
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.storage import plain, write_json, write_text
from limbeck.study.candidates import Workshop
from limbeck.study.limits import Limit, excess
from limbeck.study.plan import replace
from limbeck.study.search import FoundTrial, Search, chosen, default_storage
from limbeck.study.space import SearchPlan

__all__ = ["Fit", "read_search"]


class Fit(Recipe):
    """Search for the best model under limits on bytes, speed, lost generality or any figure.

    The file names a base, chains of verbs with knobs, what is measured, limits and an objective (see studies/).
    The same command goes on with a search that was stopped; started several times with one storage, the processes share
    the work.
    """

    verb: ClassVar[str] = "fit"
    summary: ClassVar[str] = "search for the best model under limits, and measure every limit again"
    files: ClassVar[tuple[str, ...] | None] = ("search.db", "candidates", "base", "model", "fit.json", "fit.md")

    search: str = Field(description="YAML file of the search", json_schema_extra={"positional": True})
    limits: str | None = Field(
        None, description="instead of the file's: 'bytes <= 40MB, ms_per_token <= 5, lost_generality <= 1%'",
        json_schema_extra={"verbatim": True},
    )  # fmt: skip
    objective: str | None = Field(
        None, description="instead of the file's: 'maximise accuracy'", json_schema_extra={"verbatim": True}
    )
    trials: int | None = Field(None, ge=1, description="candidates to try, over all workers; none: as the file says")
    storage: str | None = Field(
        None, description="where trials are kept: sqlite:///FILE, postgresql://..., journal:FILE; none: SQLite in --out"
    )

    def run(self, session: Display) -> Report:
        """Search, choose, measure again, write the model folder and the report.

        Raises:
            ConfigError: the file, a limit or the storage cannot be read.
            RunError: no candidate could be made.
        """
        plan = self._plan()
        folder = Path(self.out) if self.out is not None else Path("runs") / f"fit-{Path(self.search).stem}"
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(plan, folder, self.seed, session)
        workshop.check()
        search = Search(plan, workshop, self.storage or default_storage(folder), self.seed, session)
        search.run()
        found = search.found()
        if not found:
            why = "; ".join(search.refused()[:3]) or "no trial was made"
            raise RunError(f"no candidate could be made: {why}")
        best = chosen(found, search.objectives[0])
        winner = best[0]
        session.say(f"measuring trial {winner.number} again in a fresh process")
        again = workshop.again(winner.model)
        over = excess(search.limits, again)
        shutil.copytree(resolve(winner.model), folder / "model", dirs_exist_ok=True)
        values: dict[str, Any] = {
            "verb": self.verb,
            "title": plan.title,
            "folder": str(folder),
            "model": str(folder / "model"),
            "fits": winner.fits and all(v <= 0 for v in over.values()),
            "winner": _told(winner),
            "measured_again": again,
            "limits": [_limit(limit, winner, again) for limit in search.limits],
            "runners_up": [_told(f) for f in best[1:]],
            "trials": len(found) + len(search.refused()),
            "refused": search.refused(),
            "front": [_told(f) for f in found] if len(search.objectives) > 1 else [],
        }
        values["sentence"] = _sentence(values, search.objectives[0].name)
        values = plain(values)
        write_json(folder / "fit.json", values)
        body = _shown(values, [o.name for o in search.objectives])
        write_text(folder / "fit.md", _markdown(values, [o.name for o in search.objectives]))
        return Report(values, body)

    def _plan(self) -> SearchPlan:
        own = {"limits": self.limits, "objective": self.objective, "trials": self.trials}
        return read_search(Path(self.search), {k: v for k, v in own.items() if v is not None})


def read_search(file: Path, over: Mapping[str, Any] | None = None) -> SearchPlan:
    """Read a search.

    Args:
        file: YAML.
        over: values in place of the file's.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, step or knob.
    """
    values = read(file, "search file")
    given = {**values, **(over or {})}
    for key in ("base", "common", "measure"):  # ${NAME} of the environment
        if key in given:
            given[key] = replace(given[key], {})
    return build(SearchPlan, given, str(file))


def _told(found: FoundTrial) -> dict[str, Any]:
    return {
        "trial": found.number, "knobs": dict(found.knobs), "model": found.model, "values": dict(found.values),
        "excess": dict(found.excess), "fits": found.fits, "seconds": found.seconds,
    }  # fmt: skip


def _limit(limit: Limit, winner: FoundTrial, again: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        "limit": limit.text, "found": winner.values.get(limit.name), "measured_again": again.get(limit.name),
        "holds": limit.excess(again.get(limit.name)) <= 0,
    }  # fmt: skip


def _sentence(values: Mapping[str, Any], objective: str) -> str:
    winner = values["winner"]
    figure = winner["values"].get(objective)
    knobs = ", ".join(f"{k} {v}" for k, v in winner["knobs"].items())
    if values["fits"]:
        return f"trial {winner['trial']} ({knobs}) has the best {objective}, {figure:.4g}, and every limit holds again"
    broken = [one for one in values["limits"] if not one["holds"]]
    told = "; ".join(
        f"{one['limit']}: {one['measured_again']:.4g}" for one in broken if one["measured_again"] is not None
    )
    return f"nothing fits; nearest is trial {winner['trial']} ({knobs}), which breaks {told or 'a limit'}"


def _rows(values: Mapping[str, Any], objectives: Sequence[str]) -> list[list[str]]:
    names = list(dict.fromkeys([*objectives, "bytes", "ms_per_token", "lost_quality", "lost_generality"]))
    names = [n for n in names if n in values["winner"]["values"]]
    rows = [["trial", "knobs", "fits", *names]]
    for one in (values["winner"], *values["runners_up"]):
        cells = ["-" if one["values"].get(n) is None else f"{one['values'][n]:.4g}" for n in names]
        knobs = ", ".join(f"{k} {v}" for k, v in one["knobs"].items())
        rows.append([str(one["trial"]), knobs, "yes" if one["fits"] else "no", *cells])
    return rows


def _shown(values: Mapping[str, Any], objectives: Sequence[str]) -> tuple[RenderableType, ...]:
    head, *rows = _rows(values, objectives)
    table = Table(title="the best candidate and its runners-up", title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    limits = [Text(_limit_words(one)) for one in values["limits"]]
    count = f"{values['trials']} trials, {len(values['refused'])} not made or dropped early"
    return (Text(values["sentence"], style="bold"), table, *limits, Text(f"{count}; model: {values['model']}"))


def _limit_words(one: Mapping[str, Any]) -> str:
    found, again = ("-" if v is None else f"{v:.4g}" for v in (one["found"], one["measured_again"]))
    return f"{one['limit']}: {found} in the search, {again} in a fresh process: {'holds' if one['holds'] else 'broken'}"


def _markdown(values: Mapping[str, Any], objectives: Sequence[str]) -> str:
    head, *rows = _rows(values, objectives)
    lines = [f"# {values['title'] or 'Search'}", "", values["sentence"], ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)]
    lines += ["", *(f"- {_limit_words(one)}" for one in values["limits"])]
    lines += ["", *(f"- {why}" for why in values["refused"])]
    return "\n".join(lines).rstrip() + "\n"
