"""lm-eval's log of a task -> one row of scores an item, and the figures that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.jobs.harness import Found, HarnessFigure
from limbeck.measure.classes import class_columns, class_counts, class_statistics
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT
from limbeck.tasks.task import Result

__all__ = ["ROW_ID", "found_of", "item_id", "label_of"]

ROW_ID = "limbeck_id"
"""Field of lm-eval's document that holds the id of its row, where the data came from a local file."""

Columns = dict[str, NDArray[np.float64]]
Samples = Sequence[Mapping[str, Any]]

_ROLLING: Mapping[str, tuple[Literal["exp", "bits"], str]] = {
    "word_perplexity": ("exp", "words"),
    "byte_perplexity": ("exp", "bytes"),
    "bits_per_byte": ("bits", "bytes"),
}
_TEMPLATE = (
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "generation_kwargs",
    "filter_list",
    "metric_list",
)
_SHOWN = 2  # items to look at
_SURE = 1e-9  # relative difference at which our figure is lm-eval's


def found_of(
    name: str,
    task: Any,
    samples: Samples,
    aggregated: Mapping[str, Any],
    common: Mapping[str, Any],
    told: Sequence[str],
) -> Found:
    """Read what lm-eval logged of one task.

    A figure that the items do not give back as lm-eval aggregated it (an F1, a corpus score) is kept as a number
    without an interval.

    Args:
        name: of the task.
        task: lm-eval's object.
        samples: one mapping for each item and filter.
        aggregated: lm-eval's own figures.
        common: protocol of the whole run.
        told: sentences that must be shown.

    Raises:
        DataError: an item's label is none of the choices.
    """
    filters = list(dict.fromkeys(s["filter"] for s in samples))
    by_filter = {f: [s for s in samples if s["filter"] == f] for f in filters}
    first = by_filter[filters[0]]
    ids = _ids(first)
    columns, figures, others = _figures(by_filter, aggregated, task.higher_is_better())
    result_notes: dict[str, Any] = {"told": list(told)}
    if task.OUTPUT_TYPE == "multiple_choice":
        chosen = _choices(name, first, ids)
        columns |= chosen
        if any(c.startswith("true:") for c in chosen):
            figures += _class_figures(columns)
            counts = class_counts(Scores.of(ids, **columns))
            result_notes |= {"told": [*counts.sentences(), *told], "classes": counts.describe()}
    scores = Scores.of(ids, **columns)
    predictions = {i: _prediction(task.OUTPUT_TYPE, s) for i, s in zip(ids, first, strict=True)}
    if task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling"):
        predictions = {}
    shown = [_sample(s, predictions[i]) for i, s in zip(ids, first, strict=True) if predictions][:_SHOWN]
    result = Result(scores, _protocol(name, task, common), shown, result_notes, predictions)
    return Found(name, result, tuple(figures), others)


def _ids(samples: Samples) -> list[str]:
    """Return the rows' own ids, where the data came from a local file, else lm-eval's numbers."""
    return [item_id(s["doc"], s["doc_id"]) for s in samples]


def item_id(doc: Any, number: int) -> str:
    """Return the id of lm-eval's document ``number``: its row's, where it has one."""
    return str(doc.get(ROW_ID, number) if isinstance(doc, Mapping) else number)


def _figures(
    by_filter: Mapping[str, Samples], aggregated: Mapping[str, Any], better: Mapping[str, bool | None]
) -> tuple[Columns, list[HarnessFigure], dict[str, float]]:
    columns: Columns = {}
    figures: list[HarnessFigure] = []
    others: dict[str, float] = {}
    for chain, samples in by_filter.items():
        for metric in dict.fromkeys(m for s in samples for m in s["metrics"]):
            label = metric if chain == "none" else f"{metric}, {chain}"
            whole = aggregated.get(f"{metric},{chain}")
            figure, made = _figure(label, metric, [s.get(metric) for s in samples], better.get(metric))
            if figure is not None and _same(figure, made, whole):
                columns |= made
                figures.append(figure)
            elif isinstance(whole, int | float):
                others[label] = float(whole)
    return columns, figures, others


def _figure(
    label: str, metric: str, values: Sequence[Any], better: bool | None
) -> tuple[HarnessFigure | None, Columns]:
    """Return a figure of numbers an item, or of pairs of a log-likelihood and a count; None of anything else."""
    way: Any = "lower" if better is False else "higher"
    if metric in _ROLLING and all(isinstance(v, Sequence) and len(v) == 2 for v in values):
        form, unit = _ROLLING[metric]
        nll, count = -np.array([v[0] for v in values], dtype=np.float64), np.array([v[1] for v in values], dtype=float)
        figure = HarnessFigure(name=label, form=form, columns=("nll", unit), better="lower")
        return figure, {"nll": nll, unit: count}
    if not all(isinstance(v, int | float | np.number | np.bool_) and math.isfinite(v) for v in values):
        return None, {}
    column = np.array(values, dtype=np.float64)
    if metric == "perplexity":  # of one log-likelihood an item
        return HarnessFigure(name=label, form="exp", columns=("nll", COUNT), better="lower"), {"nll": -column}
    return HarnessFigure(name=label, form="mean", columns=(label,), better=way), {label: column}


def _same(figure: HarnessFigure, columns: Columns, whole: Any) -> bool:
    """Do the items give the figure that lm-eval aggregated from them?"""
    scores = Scores.of(map(str, range(len(next(iter(columns.values()))))), **columns)
    value = figure.statistic(scores).value(scores)
    known = isinstance(whole, int | float | np.number)
    return known and math.isclose(value, float(whole), rel_tol=_SURE, abs_tol=_SURE)


def _choices(name: str, samples: Samples, ids: Sequence[str]) -> Columns:
    """Log-likelihood of every choice; where all items have the same choices, also the columns of a classifier."""
    words = [tuple(str(a[1]).strip() for a in s["arguments"]) for s in samples]
    values = [[float(r[0]) for r in s["filtered_resps"]] for s in samples]
    if len({len(w) for w in words}) > 1:
        return {}
    log_probs = np.array(values)
    alike = len(set(words)) == 1 and len(set(words[0])) == len(words[0])
    labels = words[0] if alike else tuple(map(str, range(len(words[0]))))
    columns = {f"log_prob:{label}": log_probs[:, c] for c, label in enumerate(labels)}
    if not alike:
        return columns
    if not all(isinstance(s["target"], int | str) for s in samples):
        return columns  # several right answers an item: no classes
    truth = [label_of(name, i, s["target"], labels) for i, s in zip(ids, samples, strict=True)]
    normalised = log_probs - np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    return (
        columns
        | class_columns(truth, log_probs.argmax(axis=1).tolist(), labels)
        | {
            "label_nll": -normalised[np.arange(len(truth)), truth],
            "confidence": np.exp(normalised.max(axis=1)),
        }
    )


def label_of(name: str, item: str, target: int | str, labels: Sequence[str]) -> int:
    """Return the place of an item's right answer, which lm-eval has as such or as the choice itself, among ``labels``.

    Raises:
        DataError: it is none of them; lm-eval would count the item as wrong.
    """
    if isinstance(target, int) and 0 <= target < len(labels):
        return target
    if isinstance(target, str) and target.strip() in labels:
        return labels.index(target.strip())
    raise DataError(f"item {item} of {name} has the label {target!r}, which is none of {', '.join(labels)}")


def _class_figures(columns: Columns) -> list[HarnessFigure]:
    """Return what must stand beside an accuracy."""
    named = [s for s in class_statistics(columns) if s.name != "accuracy"]
    figures = [HarnessFigure(name=s.name, form="class", columns=s.columns) for s in named]
    nats = HarnessFigure(name="nats per item", form="mean", columns=("label_nll",), better="lower", unit="nats/item")
    return [*figures, nats]


def _prediction(kind: str, sample: Mapping[str, Any]) -> str:
    """Return the likeliest choice, or what was generated before any filter."""
    if kind != "multiple_choice":
        return str(sample["resps"][0][0])
    best = int(np.argmax([float(r[0]) for r in sample["filtered_resps"]]))
    return str(sample["arguments"][best][1]).strip()


def _sample(sample: Mapping[str, Any], prediction: str) -> tuple[str, str, str]:
    """Prompt, what followed it, and what was to follow, to look at."""
    target, words = sample["target"], [str(a[1]) for a in sample["arguments"]]
    if len(words) == 1:
        return str(sample["arguments"][0][0]), prediction, str(target)
    wanted = words[target].strip() if isinstance(target, int) else str(target)
    return str(sample["arguments"][0][0]), next(w for w in words if w.strip() == prediction), wanted


def _protocol(name: str, task: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal for two figures of the task to be compared."""
    config = task.config
    inside = config.metadata if isinstance(config.metadata, Mapping) else {}
    data = inside.get("rows") or inside.get(name) or " ".join(filter(None, (config.dataset_path, config.dataset_name)))
    shots = config.num_fewshot or 0
    return {
        **common,
        "task": name,
        "version": inside.get("version"),
        "corpus": data,
        "split": config.test_split or config.validation_split,
        "shots": shots,
        "shot_seed": common["shot_seed"] if shots else None,
        "examples": inside.get(f"{name}_examples") if shots else None,
        "output_type": task.OUTPUT_TYPE,
        **{key: _told(getattr(config, key)) for key in _TEMPLATE},
    }


def _told(value: Any) -> Any:
    """Plain values; a function of the task's by its name."""
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return {str(k): _told(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_told(v) for v in value]
    return value
