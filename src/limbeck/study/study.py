"""``limbeck study``: arms x seeds of recipes -> runs -> one table with intervals and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from rich.text import Text

from limbeck.config import build, read
from limbeck.errors import ConfigError, DataError, RunError, nearest
from limbeck.jobs.harness import reported_figures
from limbeck.jobs.recipe import Display, Recipe, Report
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic
from limbeck.run import Run
from limbeck.storage import check_folder, plain, write_json, write_text
from limbeck.study.analysis import analyse, analysis_tables, answer
from limbeck.study.export import flat_rows, write_exports
from limbeck.study.page import page
from limbeck.study.plan import StudyPlan
from limbeck.study.space import address
from limbeck.study.stages import stage_markdown, stage_tables, versus
from limbeck.study.table import findings, groups, markdown, tables
from limbeck.study.workers import StudyOutcome, announce, finished_report, run_arms, status
from limbeck.verbs.table import recipe

__all__ = ["Finished", "Study", "check_study_folder", "read_plan", "run_plan"]

_TABLES = ("study.json", "study.md", "study.html", "study.csv", "study.parquet", "stages.md")


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
    action: Literal["run", "status", "table", "report", "export"] = Field(
        "run",
        description="run: what is missing, then tables; status: what has run; table, report, export: of what has run",
    )
    store: str | None = Field(
        None, description="folder of runs that several studies share: an arm of equal content runs once among them"
    )

    def claim(self) -> None:
        """Refuse a folder that holds more than this study's arms and tables."""
        check_study_folder(read_plan(Path(self.plan)), self._folder())

    def _folder(self) -> Path:
        return Path(self.out) if self.out is not None else Path("runs") / f"study-{Path(self.plan).stem}"

    def run(self, session: Display) -> Report:
        """Run what has not run yet, then make the table; or show what there is."""
        plan, folder = read_plan(Path(self.plan)), self._folder()
        store = None if self.store is None else Path(self.store)
        if self.action == "status":
            rows = status(_planned(plan, folder, store))
            values = {"verb": "study", "runs": [dict(zip(("arm", "seed", "state"), row, strict=True)) for row in rows]}
            return Report(values, tuple(Text(f"{name}, seed {seed}: {state}") for name, seed, state in rows))
        return run_plan(plan, folder, session, store=store, missing=self.action == "run")


def check_study_folder(plan: StudyPlan, folder: Path) -> None:
    """Refuse a folder that holds more than the arms and tables of ``plan``.

    Raises:
        ConfigError: it does, or cannot be written.
    """
    check_folder(folder, [*_TABLES, *(_place(name) for name in plan.arms)])


def _place(arm: str) -> str:
    """Name of an arm's folder."""
    return arm.replace("/", "_").replace(":", "_")


def read_plan(file: Path) -> StudyPlan:
    """Read a study.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or arm.
    """
    values = read(file, "study file")
    if "arms" not in values and "models" not in values:
        told = f"limbeck {values.get('verb', 'VERB')} --config {file}"
        raise ConfigError(f"study file {file} has no 'arms': a recipe of one verb is run by {told}")
    return build(StudyPlan, values, str(file))


def run_plan(
    plan: StudyPlan, folder: Path, session: Display, *, store: Path | None = None, missing: bool = True
) -> Report:
    """Run every arm under every seed and compare them; runs that are finished are read, not repeated.

    An arm that fails is told with its reason, and the others go on.

    Args:
        plan: of the study.
        folder: of tables and page, and of the runs where there is no ``store``.
        session: for people.
        store: folder of runs that several studies share, by the address of their content.
        missing: run what has not run; else it is left out.

    Raises:
        RunError: no arm has a report.
    """
    recipes = _planned(plan, folder, store)
    session.say(announce(recipes))
    outcome = run_arms(plan, recipes, session) if missing else _read(recipes)
    done: dict[str, Finished] = {}
    for name, members in recipes.items():
        if name in outcome.reports:
            reports = list(outcome.reports[name].values())
            done[name] = _finished(plan, name, list(members.values()), reports)
    if not done:
        raise RunError(f"no arm of the study has a report: {'; '.join(list(outcome.failed.values())[:3])}")
    plan = _without(plan, set(outcome.failed))
    shown = [done[name] for name in (plan.show or tuple(done)) if done[name].scores]
    _check_figures(shown, (name for plot in plan.plots for name in plot))
    compared = findings([f for f in done.values() if f.scores], plan.compare, plan.metric)
    values = {
        "verb": "study",
        "title": plan.title,
        "folder": str(folder),
        "seeds": list(plan.seeds),
        "arms": {f.name: {"label": f.label, "runs": list(f.reports)} for f in done.values()},
        "failed": outcome.failed,
        "comparisons": [c.to_json() for c in compared],
    }
    write_json(folder / "study.json", plain(values))
    grouped = groups(shown, compared, plan.metric)
    knobs = {name: arm.knobs for name, arm in plan.arms.items()}
    several = [group for group in grouped if len(group.lines) > 1]
    analyses = [analyse(group, knobs, margin=plan.margin) for group in several]
    answers = [answer(group, one) for group, one in zip(several, analyses, strict=True)]
    values["answers"] = answers
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
    failed = [f"- {name} has no row: {why}" for name, why in outcome.failed.items()]
    told = [markdown(plan.title, grouped, compared), "\n".join([*failed, ""]), stage_markdown(analysed)]
    write_text(folder / "study.md", "\n".join(part for part in told if part))
    both = [*stages, *analysed]
    every = list(done.values())
    write_text(folder / "study.html", page(plan.title, grouped, compared, every, plan.plots, both, answers))
    by_seed = {
        f.name: {"label": f.label, "knobs": plan.arms[f.name].knobs, "runs": outcome.reports[f.name]}
        for f in done.values()
    }
    write_exports(flat_rows(by_seed, outcome.failed), folder)
    session.say(f"page: {folder / 'study.html'}; rows: {folder / 'study.csv'}, {folder / 'study.parquet'}")
    body = (*map(Text, answers), *tables(plan.title, grouped, compared), *(Text(line, style="red") for line in failed))
    return Report(values, body)


def _planned(plan: StudyPlan, folder: Path, store: Path | None) -> dict[str, dict[int, Recipe]]:
    """Every run of the study, checked whole, in an order in which needs come first."""
    known = {key for arm in plan.arms.values() for key in recipe(arm.verb).model_fields}
    for key in plan.common:
        if key not in known:
            raise ConfigError(f"common sets '{key}', which no arm's verb reads{nearest(key, known)}: leave it out")
    folders: dict[int, dict[str, str]] = {seed: {} for seed in plan.seeds}
    return {name: _recipes(plan, name, folder, folders, store) for name in plan.order()}


def _read(recipes: Mapping[str, Mapping[int, Recipe]]) -> StudyOutcome:
    """Return reports of the runs that are finished; an arm that lacks a seed is left out."""
    out = StudyOutcome()
    for name, members in recipes.items():
        reports = {seed: finished_report(one) for seed, one in members.items()}
        kept = {seed: r for seed, r in reports.items() if r is not None}
        if len(kept) == len(reports):
            out.reports[name] = kept
        else:
            out.failed[name] = f"{len(reports) - len(kept)} of {len(reports)} runs are not finished"
    return out


def _without(plan: StudyPlan, failed: set[str]) -> StudyPlan:
    """Return the plan without what needs arms that failed; a stage table needs all of its cells."""
    if not failed:
        return plan
    cells = {f"{m}:{f}" for m in plan.models for f in plan.figures}
    whole = not cells & failed
    return plan.model_copy(
        update={
            "show": tuple(n for n in plan.show if n not in failed),
            "compare": tuple(pair for pair in plan.compare if not failed & set(pair)),
            "models": plan.models if whole else {},
            "figures": plan.figures if whole else {},
        }
    )


def _training(folder: Path) -> Mapping[str, Any]:
    """Return what making a model took, where its folder is a run that trained it."""
    if not (folder / "report.json").is_file():
        return {}
    return dict(Run.open(folder).report().get("training") or {})


def _recipes(
    plan: StudyPlan, name: str, folder: Path, folders: dict[int, dict[str, str]], store: Path | None
) -> dict[int, Recipe]:
    """Recipes of one arm by seed; every value is checked before anything runs."""
    arm = plan.arms[name]
    kind = recipe(arm.verb)
    out: dict[int, Recipe] = {}
    for seed in plan.seeds:
        owner = plan.seeds[0] if arm.once else seed
        place = folder / _place(name) / f"seed-{owner}"
        if store is not None and owner == seed:  # what an arm needs is named by its own address
            values = plan.values(name, kind.model_fields, folders[seed])
            place = store / f"{arm.verb}-{address({'values': values, 'seed': seed})}"
        elif store is not None:
            place = Path(folders[owner][name])
        folders[seed][name] = str(place)
        if owner == seed:
            values = plan.values(name, kind.model_fields, folders[seed])
            out[seed] = build(kind, {**values, "seed": seed, "out": str(place)}, f"arm '{name}'")
            if len(getattr(out[seed], "tasks", getattr(out[seed], "harness", ()))) > 1:
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
