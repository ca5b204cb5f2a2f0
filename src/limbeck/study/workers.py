"""Run the arms of a study: several workers on one folder, failures as reasons, nothing twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import BusyError, Interrupted, LimbeckError
from limbeck.jobs.recipe import Display, Recipe
from limbeck.run import Run
from limbeck.storage import plain
from limbeck.study.plan import StudyPlan, references

__all__ = ["StudyOutcome", "announce", "finished_report", "run_arms", "status"]

_WAIT_SECONDS = 1.0
Recipes = Mapping[str, Mapping[int, Recipe]]


@dataclass
class StudyOutcome:
    """What became of the runs.

    Attributes:
        reports: arm -> seed -> report of each run that is finished.
        failed: arm -> why it has no row of figures.
    """

    reports: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_arms(
    plan: StudyPlan, recipes: Recipes, session: Display, wait: Callable[[float], None] = time.sleep
) -> StudyOutcome:
    """Run everything in order; a run that another worker holds is come back to.

    The lock of a run's folder is the lease: the system frees it when its process ends, however that happens, and the
    next worker goes on from the run's last checkpoint.

    Args:
        plan: of the study.
        recipes: arm -> seed -> recipe, in an order in which needs come first.
        session: for people.
        wait: sleeps while others work.
    """
    out = StudyOutcome()
    pending = [(name, seed) for name, members in recipes.items() for seed in members]
    total = len(pending)
    while pending:
        held: list[tuple[str, int]] = []
        for name, seed in pending:
            if name in out.failed:
                continue
            needs = references(plan.arms[name].values)
            lost = next((n for n in sorted(needs) if n in out.failed), None)
            if lost is not None:
                out.failed[name] = f"needs '{lost}', which failed"
            elif any((n, s) in held for n in needs for s in recipes[n]):
                held.append((name, seed))
            else:
                number = total - len(pending) + len(held) + 1
                session.say(f"[bold]{min(number, total)}/{total}[/bold] {plan.arms[name].label or name}, seed {seed}")
                try:
                    report = plain(recipes[name][seed].run(session).values)
                    out.reports.setdefault(name, {})[seed] = report
                except BusyError:
                    held.append((name, seed))
                except Interrupted:
                    raise
                except LimbeckError as error:
                    out.failed[name] = f"seed {seed}: {error}"
                    session.say(f"[red]failed[/red]: {name}, seed {seed}: {error}")
        if held and held == pending:
            wait(_WAIT_SECONDS)
        pending = held
    for name in out.failed:
        out.reports.pop(name, None)
    return out


def finished_report(one: Recipe) -> dict[str, Any] | None:
    """Return the report of a recipe's run where it is finished, without running anything."""
    folder = Path(str(one.out))
    return Run.open(folder).report() if (folder / "report.json").is_file() else None


def status(recipes: Recipes) -> list[tuple[str, int, str]]:
    """Return arm, seed and state of every run: finished, begun, or not begun."""
    out = []
    for name, members in recipes.items():
        for seed, one in members.items():
            begun = (Path(str(one.out)) / "recipe.yaml").is_file()
            state = "finished" if finished_report(one) is not None else "begun" if begun else "not begun"
            out.append((name, seed, state))
    return out


def announce(recipes: Recipes) -> str:
    """Return one line on what is to be done: runs by verb, and training steps."""
    open_ = [one for members in recipes.values() for one in members.values() if finished_report(one) is None]
    total = sum(len(members) for members in recipes.values())
    verbs = Counter(one.verb for one in open_)
    steps = sum(getattr(getattr(one, "train", None), "steps", None) or 0 for one in open_)
    told = ", ".join(f"{count} {verb}" for verb, count in verbs.items()) or "nothing"
    trained = f"; {steps:,} training steps where steps are given" if steps else ""
    return f"plan: {total} runs, {total - len(open_)} of them finished; to do: {told}{trained}"
