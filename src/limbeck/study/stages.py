"""Models beside each other on several figures: change by stage, cost, and who matches, exceeds or lags whom."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

from limbeck.errors import ConfigError, nearest
from limbeck.measure.statistic import Statistic
from limbeck.measure.stats import Comparison, adjust, compare, interval
from limbeck.study.plan import StudyPlan
from limbeck.study.table import ArmRow, change, rounded, span

__all__ = ["Standing", "Table", "Versus", "stage_markdown", "stage_tables", "standing", "versus"]

Standing = Literal["matches", "exceeds", "lags", "undecided"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text, for Markdown and for the page alike.

    Attributes:
        heading: what it shows.
        rows: the head, then the rows; the first cell of each is its name.
        note: what must stand below it.
    """

    heading: str
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Versus:
    """One model against another on one figure.

    Attributes:
        figure: name of the figure in the plan.
        metric: which of its statistics is compared.
        first: the model that is judged.
        second: the one it is held against.
        comparison: ``first - second``.
        standing: what the first does beside the second.
    """

    figure: str
    metric: str
    first: str
    second: str
    comparison: Comparison
    standing: Standing

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        names = {"figure": self.figure, "metric": self.metric, "first": self.first, "second": self.second}
        return names | {"standing": self.standing} | self.comparison.to_json()


def standing(comparison: Comparison, margin: float | None) -> Standing:
    """Return what the second system of a comparison does beside the first.

    With a margin, a difference that is shown to lie within it (two one-sided tests) does not matter: it matches.
    """
    if margin is not None and comparison.equivalence(margin).equivalent:
        return "matches"
    return {"b": "exceeds", "a": "lags", None: "undecided"}[comparison.better]  # type: ignore[return-value]


def versus(plan: StudyPlan, done: Mapping[str, ArmRow]) -> list[Versus]:
    """Return every model against every earlier one, figure by figure.

    Raises:
        ConfigError: a model is not measured by the metric that a figure names.
    """
    each = {}
    for name, figure in plan.figures.items():
        for metric, (second, first) in product(figure.metrics, combinations(plan.models, 2)):
            a, b = done[f"{second}:{name}"], done[f"{first}:{name}"]
            statistic = _statistic(b, metric)
            each[name, statistic.name, first, second] = compare(list(a.scores), list(b.scores), statistic)
    return [Versus(*key, c, standing(c, plan.figures[key[0]].margin)) for key, c in adjust(each).items()]


def _statistic(row: ArmRow, metric: str | None) -> Statistic:
    known = {s.name: s for s in row.statistics}
    if metric is not None and metric not in known:
        raise ConfigError(f"{row.label} does not measure '{metric}', only {', '.join(known)}{nearest(metric, known)}")
    return row.statistics[0] if metric is None else known[metric]


def stage_tables(
    plan: StudyPlan, done: Mapping[str, ArmRow], found: Sequence[Versus], trained: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """Return the stage table, the probes beside it, and, where a margin is stated, who matches, exceeds or lags whom.

    Args:
        plan: with ``models`` and ``figures``.
        done: arms that have run; ``model:figure`` are those of the table.
        found: what ``versus`` says.
        trained: model -> ``training`` of the report of the run that made it, where there is one.
    """
    made = [_stages(plan, done, found, trained), _probes(plan, done), _standings(plan, found)]
    return [table for table in made if len(table.rows) > 1]


def _stages(
    plan: StudyPlan, done: Mapping[str, ArmRow], found: Sequence[Versus], trained: Mapping[str, Mapping[str, Any]]
) -> Table:
    pairs = {(v.figure, v.metric, v.first, v.second): v for v in found}
    models = list(plan.models)
    heads = [(n, _statistic(done[f"{models[0]}:{n}"], metric)) for n, f in plan.figures.items() for metric in f.metrics]
    columns = [f"{n}: {s.name} ({s.better} is better)" for n, s in heads]
    above = None
    rows = [("model", *columns, "alarms", "ms / token", "tokens", "hours")]
    for model in models:
        cells, before = [], plan.before(model)
        for name, statistic in heads:
            own = interval(list(done[f"{model}:{name}"].scores), statistic)
            cell = f"{rounded(own.value, own.low, own.high)} {span(own)}"
            if before is not None:
                moved = " ".join(change(pairs[name, statistic.name, model, before].comparison))
                cell += f"; change{'' if before == above else f' from {before}'} {moved}"
            cells.append(cell)
        reports = [r for name in plan.figures for r in done[f"{model}:{name}"].reports]
        fired = sum(any(a["fired"] for a in alarms) for alarms in _alarms(plan, done, model).values())
        speed = statistics.median(r["cost"]["speed"]["decode_ms_per_token"] for r in reports)
        made = trained.get(model) or {}
        cells += [f"{fired} fired" if fired else "none", f"{speed:.2f}"]
        cells += [f"{made['real_tokens']:,}", f"{made['seconds'] / 3600:.2f}"] if made else ["-", "-"]
        rows.append((model, *cells))
        above = model
    note = (
        "Change: from the row above where no other is named, with its 95 % interval; tokens and hours: of that stage's "
        "training alone, under the first seed."
    )
    return Table("Stage by stage", tuple(rows), note)


def _probes(plan: StudyPlan, done: Mapping[str, ArmRow]) -> Table:
    """Every probe of every figure, a model a column: its value, or the span of several seeds' values."""
    values: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for model in plan.models:
        for place, alarms in _alarms(plan, done, model).items():
            values.setdefault(place, {})[model] = alarms
    rows = [("probe", *plan.models, "threshold")]
    for (figure, name), by_model in values.items():
        limits = [a["threshold"] for some in by_model.values() for a in some]
        thresholds = dict.fromkeys("-" if x is None else f"{x:.3g}" for x in limits)
        cells = [_probe(by_model.get(model, ())) for model in plan.models]
        rows.append((f"{figure}: {name}", *cells, ", ".join(thresholds)))
    return Table("Probes", tuple(rows), "A probe above its threshold is marked as fired; -: it had nothing to judge.")


def _alarms(plan: StudyPlan, done: Mapping[str, ArmRow], model: str) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(figure, probe) -> what it found under each seed."""
    out: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for figure in plan.figures:
        for alarm in (a for r in done[f"{model}:{figure}"].reports for a in r.get("alarms") or []):
            out.setdefault((figure, alarm["name"]), []).append(alarm)
    return out


def _probe(alarms: Sequence[Mapping[str, Any]]) -> str:
    if not alarms:
        return "-"
    found = [a["value"] for a in alarms if a["value"] is not None]  # a report holds no other than finite numbers
    low, high = (f"{pick(found):.3g}" if found else "not finite" for pick in (min, max))
    said = low if low == high else f"{low} to {high}"
    return f"{said}, fired" if any(a["fired"] for a in alarms) else said


def _standings(plan: StudyPlan, found: Sequence[Versus]) -> Table:
    rows = [("figure", "model", "beside", "standing", "difference", "margin")]
    for v in found:
        margin = plan.figures[v.figure].margin
        if margin is not None:
            difference = " ".join(change(v.comparison))
            rows.append((f"{v.figure}: {v.metric}", v.first, v.second, v.standing, difference, f"{margin:g}"))
    note = (
        "Matches: two one-sided tests show that the difference lies within the margin. Exceeds, lags: a difference is "
        "shown, but not that it is so small. Undecided: neither is shown. "
        f"Differences are judged after Holm over all {len(found)} pairs of this study."
    )
    return Table("Who matches, exceeds or lags whom", tuple(rows), note)


def stage_markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    lines = []
    for table in tables:
        head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
        lines += [f"## {table.heading}", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)
