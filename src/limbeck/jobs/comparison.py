"""Comparison of two evaluations item by item: paired differences, intervals, verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.config import Config, build
from limbeck.errors import ConfigError, DataError, nearest
from limbeck.jobs.harness import reported_figures, reported_protocol
from limbeck.jobs.recipe import Recipe, Report
from limbeck.measure.scores import Scores, align
from limbeck.measure.statistic import Statistic, mean, ratio
from limbeck.measure.stats import Comparison, adjust, compare, items_needed, verdict
from limbeck.run import Run
from limbeck.tasks.table import AnyTask

__all__ = ["ComparisonOptions", "Evaluated", "comparison", "evaluated", "judged", "read_predictions"]

_ITEMS: dict[str, Any] = {"section": "samples"}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation to compare.

    Attributes:
        name: how it is called in the verdict.
        file: its scores.
        scores: one row an item.
        figures: the statistics of the run's task, the main one first; empty for scores alone.
        protocol: what must be equal for two figures to be compared; empty for scores alone.
        predictions: item id -> what was generated or chosen, where that was kept.
    """

    name: str
    file: Path
    scores: Scores
    figures: tuple[Statistic, ...]
    protocol: Mapping[str, Any]
    predictions: Mapping[str, str]


class _Recorded(Config):
    """The part of a run's recipe that says what its scores mean."""

    task: AnyTask


class ComparisonOptions(Recipe):
    """Two evaluations, the figures to compare, and how."""

    run_a: str = Field(description="a run folder or a scores file", json_schema_extra={"positional": True})
    run_b: str = Field(description="another", json_schema_extra={"positional": True})
    part: str | None = Field(None, description="evaluation to compare, such as test; none: the one both have")
    metric: str | None = Field(
        None,
        description="a figure of the task, or COLUMN, or COLUMN/COLUMN of the scores; none: every figure of the task",
    )
    better: Literal["lower", "higher"] | None = Field(None, description="which way is better, where no task says")
    pairing: Literal["items", "shared", "none"] = Field(
        "items", description="items: both sets must be equal; shared: compare what both have; none: do not pair"
    )
    margin: float | None = Field(None, gt=0, description="a difference that does not matter: equivalence is tested too")
    any_protocol: bool = Field(False, description="compare even what was measured in different ways")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(4000, ge=100, description="resamples of the permutation test")
    samples: int = Field(
        0, ge=0, description="items shown with both texts, those with the largest change", json_schema_extra=_ITEMS
    )
    width: int = Field(300, ge=20, description="characters of each text shown", json_schema_extra=_ITEMS)


def comparison(options: ComparisonOptions) -> Report:
    """Pair, resample, judge.

    Raises:
        DataError: a run without scores, different items, or a figure that is not there.
        ConfigError: the two were measured in different ways.
    """
    for name in (options.run_a, options.run_b):
        _existing(name)
    a = evaluated(options.run_a, options.part or _part(options.run_a, options.run_b))
    b = evaluated(options.run_b, options.part or _part(options.run_b, options.run_a))
    differences = _differing(a.protocol, b.protocol)
    if differences and not options.any_protocol:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ConfigError(
            f"{a.name} and {b.name} were measured in different ways ({'; '.join(differences[:4])}{more}): "
            "evaluate both alike, or give --any-protocol"
        )
    found = judged(options, a, b)
    names = _names(a, b)
    verdicts = {name: verdict(c, names, options.margin) + _more(c, options.margin) for name, c in found.items()}
    main = next(iter(found.values()))
    changed = _changed(a, b, main.statistic, options.samples) if options.pairing != "none" else []
    values: dict[str, Any] = {
        "verb": options.verb,
        "a": {"name": names[0], "scores": str(a.file), "items": len(a.scores)},
        "b": {"name": names[1], "scores": str(b.file), "items": len(b.scores)},
        "protocol_differences": differences,
        "comparisons": {
            name: {
                **c.to_json(),
                "verdict": verdicts[name],
                "items_needed": _needed(c, options.margin),
            }
            for name, c in found.items()
        },
        "changed": changed,
    }
    body: list[RenderableType] = [_table(names, found)]
    body += [Text(f"{name}: {told}") for name, told in verdicts.items()]
    body += _shown(changed, names, main.statistic, options.width)
    report = Report(values, tuple(body))
    if options.out is not None:
        report.write(Path(options.out) / "comparison.json")
    return report


def judged(options: ComparisonOptions, a: Evaluated, b: Evaluated) -> dict[str, Comparison]:
    """Compare every figure; the first was named beforehand and is judged alone, the further ones after Holm."""
    each = {s.name: _one(options, a, b, s) for s in _statistics(options, a, b)}
    return adjust(each, alone=next(iter(each)))


def _one(options: ComparisonOptions, a: Evaluated, b: Evaluated, statistic: Statistic) -> Comparison:
    return compare(
        a.scores, b.scores, statistic,
        pairing=options.pairing, level=options.level, resamples=options.resamples, seed=options.seed,
    )  # fmt: skip


def _statistics(options: ComparisonOptions, a: Evaluated, b: Evaluated) -> list[Statistic]:
    """Return the figures to compare: the one named, or every one that both runs' tasks have."""
    theirs = {(s.name, s.columns) for s in b.figures}
    both = {s.name: s for s in a.figures if (s.name, s.columns) in theirs}
    if options.metric is None:
        if not both:
            shared = ", ".join(c for c in a.scores.columns if c in b.scores.columns) or "nothing"
            raise ConfigError(f"the two share no figure of a task: name one with --metric, made of {shared}")
        return list(both.values())
    if options.metric in both:
        return [both[options.metric]]
    columns = options.metric.split("/")
    for column in columns:
        if column not in a.scores.columns:
            known = [*both, *a.scores.columns]
            raise ConfigError(f"no figure or score is called '{column}' in {a.file}{nearest(column, known)}")
    if options.better is None:
        raise ConfigError(f"'{options.metric}' is no figure of a task: say with --better which way is better")
    if len(columns) > 2:
        raise ConfigError(f"--metric is COLUMN or COLUMN/COLUMN, not '{options.metric}'")
    return [mean(columns[0], better=options.better) if len(columns) == 1 else ratio(*columns, better=options.better)]


def evaluated(name: str, part: str | None) -> Evaluated:
    """Read one side: a scores file, or the evaluation ``part`` of a run with what its report says of it.

    Raises:
        DataError: there is no such run, file or evaluation, or its scores cannot be read.
    """
    path = _existing(name)
    if path.is_dir():
        run: Run | None = Run.open(path)
        file = path / "scores" / f"{part}.jsonl"
        if not file.is_file():
            has = ", ".join(_parts(Run.open(path))) or "none"
            raise DataError(f"run {path} has no scores of '{part}' (it has: {has}): evaluate it first")
    else:
        folder, file = path.parent.parent, path
        run = Run.open(folder) if path.parent.name == "scores" and (folder / "recipe.yaml").is_file() else None
    scores = Scores.read(file)
    report = run.report() if run is not None and run.finished else {}
    figures = reported_figures(report, file.stem, scores)
    if figures is None:
        figures = _figures(run, scores) if run is not None else ()
    return Evaluated(name, file, scores, figures, reported_protocol(report, file.stem), read_predictions(file))


def _existing(name: str) -> Path:
    """Return the path of a run or a file of scores.

    Raises:
        DataError: there is nothing of that name.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"{name} does not exist: name a run folder or a file of scores")
    return path


def _figures(run: Run, scores: Scores) -> tuple[Statistic, ...]:
    """Return what the task of the run's recipe makes of the scores."""
    described = run.recipe().get("task")
    if described is None:
        return ()
    task = build(_Recorded, {"task": described}, f"the recipe of {run.path}").task
    return task.statistics(scores.columns)


def _parts(run: Run) -> list[str]:
    return sorted(p.stem for p in run.scores.glob("*.jsonl"))


def _part(name: str, other: str) -> str | None:
    """Return the evaluation of run ``name`` to compare with ``other``'s: one that both have, test first, else its only
    one.
    """
    mine, theirs = (Path(n).expanduser() for n in (name, other))
    if not mine.is_dir():
        return None
    has = _parts(Run.open(mine))
    shared = set(has) & set(_parts(Run.open(theirs))) if theirs.is_dir() else set()
    ranked = sorted(shared, key=lambda p: ({"test": 0, "valid": 1}.get(p, 2), p))
    if ranked:
        return ranked[0]
    if len(has) == 1:
        return has[0]
    listed = ", ".join(has) or "none"
    raise DataError(f"which evaluation of {name} is to be compared with {other}? It has: {listed}; name it with --part")


def read_predictions(scores: Path) -> dict[str, str]:
    """Read what was generated, item by item, from ``test.predictions.json`` beside ``test.jsonl``; nothing if not kept.

    Raises:
        DataError: the file holds no JSON object.
    """
    file = scores.with_suffix(".predictions.json")
    if not file.is_file():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError):
        raise DataError(f"{file} is not a JSON object of predictions by item id") from None


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return settings of two protocols that differ, in words; settings that one of them does not state are left out."""
    return [f"{key} {a[key]} and {b[key]}" for key in a if key in b and a[key] != b[key]]


def _names(a: Evaluated, b: Evaluated) -> tuple[str, str]:
    """Return the last parts of the two names that tell them apart."""
    first, second = Path(a.name).parts, Path(b.name).parts
    for size in range(1, max(len(first), len(second)) + 1):
        one, two = "/".join(first[-size:]), "/".join(second[-size:])
        if one != two:
            return one, two
    return f"{a.name} (first)", f"{b.name} (second)"


def _changed(a: Evaluated, b: Evaluated, statistic: Statistic, most: int) -> list[dict[str, Any]]:
    """Return the items whose own figure changed most from a to b, with what both generated; unchanged ones are left
    out.
    """
    one, two = align(a.scores, b.scores, intersect=True)
    before, after = statistic.of_sums(statistic.table(one)), statistic.of_sums(statistic.table(two))
    change = after - before
    order = np.argsort(-np.abs(change), kind="stable")[:most]
    return [
        {
            "id": one.ids[i],
            "a": float(before[i]),
            "b": float(after[i]),
            "change": float(change[i]),
            "better": "b" if (change[i] > 0) == (statistic.better == "higher") else "a",
            "prediction_a": a.predictions.get(one.ids[i]),
            "prediction_b": b.predictions.get(one.ids[i]),
        }
        for i in order.tolist()
        if change[i] != 0
    ]


def _needed(c: Comparison, margin: float | None) -> int | None:
    """Items that would show the difference observed (or ``margin``) four times out of five; None where it is shown.

    Nothing is said of equal figures without a margin, of one item, or of items that do not differ at all.
    """
    wanted = margin if margin is not None else abs(c.difference)
    if c.better is not None or wanted == 0 or c.items < 2 or c.item_error == 0:
        return None
    return items_needed(c, wanted)


def _more(c: Comparison, margin: float | None) -> str:
    needed = _needed(c, margin)
    if needed is None or needed <= c.items:  # with as many as there are, what is missing is not items
        return ""
    of = "this difference" if margin is None else f"a difference of {margin:g}"
    return f"; about {needed:,} items would show {of} four times out of five"


def _table(names: tuple[str, str], found: Mapping[str, Comparison]) -> Table:
    note = "* of the first figure alone; of the further ones after Holm" if len(found) > 1 else None
    title = f"{names[0]} against {names[1]} (difference: {names[1]} - {names[0]})"
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for heading in ("figure", names[0], names[1], "difference", "interval", "p*", "items", "better"):
        table.add_column(heading, justify="left" if heading in ("figure", "better") else "right", overflow="fold")
    for name, c in found.items():
        unit = f" ({c.statistic.unit})" if c.statistic.unit else ""
        better = {"a": names[0], "b": names[1], None: "no difference shown"}[c.better]
        span = f"[{c.low:+.4g}, {c.high:+.4g}]"
        figures = (f"{c.a:.4g}", f"{c.b:.4g}", f"{c.difference:+.4g}", span, f"{c.p_adjusted:.3g}")
        table.add_row(name + unit, *figures, str(c.items), better)
    return table


def _shown(
    changed: list[dict[str, Any]], names: tuple[str, str], statistic: Statistic, width: int
) -> list[RenderableType]:
    """Return the items that changed most, for people."""
    if not changed:
        return []
    table = Table(title=f"items whose {statistic.name} changed most", title_justify="left", show_lines=True)
    for heading in ("item", names[0], names[1], "generated"):
        table.add_column(heading, overflow="fold")
    for item in changed:
        both = zip(names, (item["prediction_a"], item["prediction_b"]), strict=True)
        told = [f"{name}: {_cut(text, width)}" for name, text in both if text is not None]
        cells = (item["id"], f"{item['a']:.4g}", f"{item['b']:.4g}", "\n".join(told))
        table.add_row(*map(Text, cells))  # as text: what a model generated may look like markup
    return [table]


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
