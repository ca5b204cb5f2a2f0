"""Models beside each other on several figures: change by stage, cost, and who matches, exceeds or lags whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from limbeck.errors import ConfigError, nearest
from limbeck.measure.statistic import Statistic
from limbeck.measure.stats import Comparison, compare, interval
from limbeck.study.plan import StudyPlan
from limbeck.study.table import Row, change, rounded, span

__all__ = ["Standing", "Versus", "stage_markdown", "standing", "versus"]

Standing = Literal["matches", "exceeds", "lags", "undecided"]


@dataclass(frozen=True, slots=True)
class Versus:
    """One model against another on one figure.

    Attributes:
        figure: name of the figure in the plan.
        first: the model that is judged.
        second: the one it is held against.
        comparison: ``first - second``.
        standing: what the first does beside the second.
    """

    figure: str
    first: str
    second: str
    comparison: Comparison
    standing: Standing

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        names = {"figure": self.figure, "first": self.first, "second": self.second, "standing": self.standing}
        return names | self.comparison.to_json()


def standing(comparison: Comparison, margin: float | None) -> Standing:
    """What the second system of a comparison does beside the first.

    With a margin, a difference that is shown to lie within it (two one-sided tests) does not matter: it matches.
    """
    if margin is not None and comparison.equivalence(margin).equivalent:
        return "matches"
    return {"b": "exceeds", "a": "lags", None: "undecided"}[comparison.better]  # type: ignore[return-value]


def versus(plan: StudyPlan, done: Mapping[str, Row]) -> list[Versus]:
    """Every model against every earlier one, figure by figure.

    Raises:
        ConfigError: a model is not measured by the metric that a figure names.
    """
    out = []
    for name, figure in plan.figures.items():
        for second, first in combinations(plan.models, 2):
            a, b = done[f"{second}:{name}"], done[f"{first}:{name}"]
            statistic = _statistic(b, figure.metric)
            c = compare(list(a.scores), list(b.scores), statistic)
            out.append(Versus(name, first, second, c, standing(c, figure.margin)))
    return out


def _statistic(row: Row, metric: str | None) -> Statistic:
    known = {s.name: s for s in row.statistics}
    if metric is not None and metric not in known:
        raise ConfigError(f"{row.label} does not measure '{metric}', only {', '.join(known)}{nearest(metric, known)}")
    return row.statistics[0] if metric is None else known[metric]


def stage_markdown(
    plan: StudyPlan, done: Mapping[str, Row], found: Sequence[Versus], trained: Mapping[str, Mapping[str, Any]]
) -> str:
    """The stage table, then, where a margin is stated, who matches, exceeds or lags whom.

    Args:
        plan: with ``models`` and ``figures``.
        done: arms that have run; ``model:figure`` are those of the table.
        found: what ``versus`` says.
        trained: model -> ``training`` of the report of the run that made it, where there is one.
    """
    pairs = {(v.figure, v.first, v.second): v for v in found}
    models = list(plan.models)
    heads = {n: _statistic(done[f"{models[0]}:{n}"], f.metric) for n, f in plan.figures.items()}
    columns = [f"{n}: {s.name} ({s.better} is better)" for n, s in heads.items()]
    lines = ["| model | " + " | ".join([*columns, "alarms", "ms / token", "tokens", "hours"]) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) + 4))
    for i, model in enumerate(models):
        cells = []
        for name, statistic in heads.items():
            own = interval(list(done[f"{model}:{name}"].scores), statistic)
            cell = f"{rounded(own.value, own.low, own.high)} {span(own)}"
            if i:
                cell += "; change " + " ".join(change(pairs[name, model, models[i - 1]].comparison))
            cells.append(cell)
        reports = [r for name in heads for r in done[f"{model}:{name}"].reports]
        rang = dict.fromkeys(a["name"] for r in reports for a in r.get("alarms") or [] if a["fired"])
        speed = [r["cost"]["speed"]["decode_ms_per_token"] for r in reports]
        made = trained.get(model) or {}
        cells += [", ".join(rang) or "none", f"{sorted(speed)[len(speed) // 2]:.2f}"]
        cells += [f"{made['real_tokens']:,}", f"{made['seconds'] / 3600:.2f}"] if made else ["-", "-"]
        lines.append("| " + " | ".join([model, *cells]) + " |")
    lines += [
        "",
        "Change: from the row above, with its 95 % interval; tokens and hours: of that stage's training alone.",
    ]
    judged = [v for v in found if plan.figures[v.figure].margin is not None]
    if judged:
        lines += ["", "| figure | model | beside | standing | difference | margin |", "|---|---|---|---|---:|---:|"]
        for v in judged:
            difference = " ".join(change(v.comparison))
            margin = f"{plan.figures[v.figure].margin:g}"
            lines.append(f"| {v.figure} | {v.first} | {v.second} | {v.standing} | {difference} | {margin} |")
    return "\n".join(lines) + "\n"
