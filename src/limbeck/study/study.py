"""``limbeck study``: arms x seeds of recipes -> runs -> one table with intervals and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field

from limbeck.config import build
from limbeck.errors import ConfigError, DataError, nearest
from limbeck.jobs.harness import reported_figures
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.run import Run
from limbeck.storage import plain, write_json, write_text
from limbeck.study.analysis import analyse, analysis_tables
from limbeck.study.page import page
from limbeck.study.plan import StudyPlan
from limbeck.study.stages import stage_markdown, stage_tables, versus
from limbeck.study.table import findings, groups, markdown, tables
from limbeck.verbs.table import recipe

__all__ = ["Finished", "Study", "read_plan", "run_plan"]


@dataclass(frozen=True, slots=True)
class Finished:
    """One arm with all its seeds done.

    Attributes:
        name: of the arm.
        label: how tables call it.
        reports: the report of each seed's run.
        scores: per-item scores of each seed's run.
        statistics: the task's figures, the main one first.
    """

    name: str
    label: str
    reports: Sequence[Mapping[str, Any]]
    scores: Sequence[Scores]
    statistics: tuple[Statistic, ...]


class Study(Recipe):
    """Run every arm of a study under every seed and compare them."""

    verb: ClassVar[str] = "study"
    summary: ClassVar[str] = "run recipes x seeds from one file and compare them in one table"

    plan: str = Field(description="YAML file of the study", json_schema_extra={"positional": True})

    def run(self, session: Display) -> Report:
        """Run what has not run yet, then make the table."""
        plan = read_plan(Path(self.plan))
        folder = Path(self.out) if self.out is not None else Path("runs") / f"study-{Path(self.plan).stem}"
        return run_plan(plan, folder, session)


def read_plan(file: Path) -> StudyPlan:
    """Read a study.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or arm.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"study file {file} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study file {file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"study file {file} must hold 'key: value' lines")
    return build(StudyPlan, values, str(file))


def run_plan(plan: StudyPlan, folder: Path, session: Display) -> Report:
    """Run every arm under every seed below ``folder``; runs that are finished there are read, not repeated."""
    done: dict[str, Finished] = {}
    folders: dict[int, dict[str, str]] = {seed: {} for seed in plan.seeds}
    recipes = {name: _recipes(plan, name, folder, folders) for name in plan.order()}
    total = sum(len(r) for r in recipes.values())
    number = 0
    for name, members in recipes.items():
        reports = []
        for seed, one in members.items():
            number += 1
            session.say(f"[bold]{number}/{total}[/bold] {plan.arms[name].label or name}, seed {seed}")
            reports.append(plain(one.run(session).values))
        done[name] = _finished(plan, name, list(members.values()), reports)
    shown = [done[name] for name in (plan.show or tuple(done)) if done[name].scores]
    _check_figures(shown, (name for plot in plan.plots for name in plot))
    compared = findings([f for f in done.values() if f.scores], plan.compare, plan.metric)
    values = {
        "verb": "study",
        "title": plan.title,
        "folder": str(folder),
        "seeds": list(plan.seeds),
        "arms": {f.name: {"label": f.label, "runs": list(f.reports)} for f in done.values()},
        "comparisons": [c.to_json() for c in compared],
    }
    write_json(folder / "study.json", plain(values))
    grouped = groups(shown, compared, plan.metric)
    knobs = {name: arm.knobs for name, arm in plan.arms.items()}
    analyses = [analyse(group, knobs, margin=plan.margin) for group in grouped if len(group.lines) > 1]
    values["analysis"] = [a.to_json() for a in analyses]
    write_json(folder / "study.json", plain(values))
    analysed = analysis_tables(analyses, {f.name: f.label for f in shown})
    staged, stages = versus(plan, done), []
    if staged:
        first = next(iter(plan.figures))
        trained = {m: _training(Path(done[f"{m}:{first}"].reports[0]["model"])) for m in plan.models}
        values["stages"] = [v.to_json() for v in staged]
        write_json(folder / "study.json", plain(values))
        stages = stage_tables(plan, done, staged, trained)
        write_text(folder / "stages.md", stage_markdown(stages))
        session.say(f"stage table: {folder / 'stages.md'}")
    told = [markdown(plan.title, grouped, compared), stage_markdown(analysed)]
    write_text(folder / "study.md", "\n".join(part for part in told if part))
    both = [*stages, *analysed]
    write_text(folder / "study.html", page(plan.title, grouped, compared, list(done.values()), plan.plots, both))
    return Report(values, tables(plan.title, grouped, compared))


def _training(folder: Path) -> Mapping[str, Any]:
    """What making a model took, where its folder is a run that trained it."""
    if not (folder / "report.json").is_file():
        return {}
    return dict(Run.open(folder).report().get("training") or {})


def _recipes(plan: StudyPlan, name: str, folder: Path, folders: dict[int, dict[str, str]]) -> dict[int, Recipe]:
    """Recipes of one arm by seed; every value is checked before anything runs."""
    arm = plan.arms[name]
    kind = recipe(arm.verb)
    out: dict[int, Recipe] = {}
    for seed in plan.seeds:
        owner = plan.seeds[0] if arm.once else seed
        place = folder / name.replace("/", "_").replace(":", "_") / f"seed-{owner}"
        folders[seed][name] = str(place)
        if owner == seed:
            values = plan.values(name, kind.model_fields, folders[seed])
            out[seed] = build(kind, {**values, "seed": seed, "out": str(place)}, f"arm '{name}'")
            if len(getattr(out[seed], "harness", ())) > 1:
                raise ConfigError(f"arm '{name}' has several tasks of the harness: give each an arm of its own")
    return out


def _finished(plan: StudyPlan, name: str, members: Sequence[Recipe], reports: list[dict[str, Any]]) -> Finished:
    scores = [Scores.read(Path(r["scores"])) for r in reports if r.get("scores")]
    if scores and len(scores) != len(reports):
        raise DataError(f"arm '{name}' has scores for {len(scores)} of {len(reports)} seeds")
    task = getattr(members[0], "task", None)
    statistics = reported_figures(reports[0], reports[0].get("evaluated", ""), scores[0]) if scores else ()
    if statistics is None:
        statistics = task.statistics(scores[0].columns) if task is not None else ()
    return Finished(name, plan.arms[name].label or name, reports, scores, statistics)


def _check_figures(rows: Sequence[Finished], names: Iterable[str]) -> None:
    """Refuse a figure that no arm measures.

    Raises:
        ConfigError: a name is none of theirs.
    """
    known = dict.fromkeys(s.name for row in rows for s in row.statistics)
    for name in names:
        if name not in known:
            raise ConfigError(f"no arm measures '{name}', only {', '.join(known)}{nearest(name, known)}")
