"""Functions of ``import limbeck`` that measure, compare and describe models, runs and data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from limbeck.api.forms import Named, kind_of, model_options, path_of
from limbeck.given import Data, data_name, plan_name, predictions_name
from limbeck.handle import job, model_name
from limbeck.results import JobResult

__all__ = ["audit", "certify", "compare", "evaluate", "fit", "info", "report", "score", "study", "verify"]


def evaluate(
    model: Named, data: Data, *, task: Any = "text", out: str | os.PathLike[str] | None = None, **options: Any
) -> JobResult:
    """Measure a model on a task's rows: figures with intervals, their protocol, cost.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        data: see ``limbeck.finetune``.
        task: kind of work.
        out: run folder, which ``limbeck.compare`` needs; None: nothing is written.
        **options: options of ``limbeck evaluate``.

    >>> import limbeck
    >>> result = limbeck.evaluate("runs/tiny", "toy:stories", limit=5, probes="off")
    >>> metric = result.metrics["nats per token"]
    >>> metric.low <= metric.value <= metric.high
    True
    """
    values = {"data": data_name(data), "task": kind_of(task), "out": path_of(out)}
    return job("evaluate", {**model_options(model, codes=True), **values, **options})


def compare(a: str | os.PathLike[str] | JobResult, b: str | os.PathLike[str] | JobResult, **options: Any) -> JobResult:
    """Compare two runs item by item: the difference of every figure with its interval and a verdict.

    Args:
        a: a run folder, a file of scores, or a result.
        b: another.
        **options: options of ``limbeck compare``, such as ``metric`` or ``margin``.

    >>> import limbeck
    >>> for name in ("a", "b"):
    ...     _ = limbeck.evaluate("runs/tiny", "toy:stories", limit=5, probes="off", out=f"runs/{name}")
    >>> result = limbeck.compare("runs/a", "runs/b")
    >>> result.report["comparisons"]["nats per token"]["difference"]
    0.0
    """
    return job("compare", {"run_a": model_name(a), "run_b": model_name(b), **options})


def audit(train: Data, test: Data | None = None, **options: Any) -> JobResult:
    """Find rows that training data shares with other data, and rows that repeat.

    Args:
        train: training rows; forms as in ``limbeck.finetune``.
        test: rows that it must not share anything with; None: look for repeats within the training rows.
        **options: options of ``limbeck audit``.

    >>> import limbeck
    >>> result = limbeck.audit(["one two three four", "five six seven eight"], ["five six seven eight"])
    >>> result.report["verb"]
    'audit'
    """
    other: dict[str, Any] = {"within": True} if test is None else {"against": [data_name(test)]}
    return job("audit", {"train": data_name(train), **other, **options})


def info(model: Named, **options: Any) -> JobResult:
    """Describe a model or a run: shape, sizes, tokenizer.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        **options: options of ``limbeck info``.

    >>> import limbeck
    >>> limbeck.info("runs/tiny").report["verb"]
    'info'
    """
    return job("info", {**model_options(model, codes=True), **options})


def certify(
    base: Named,
    smaller: Named,
    data: Data | None = None,
    *,
    task: Any = "text",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Test in sequence whether a smaller model is worse than its base.

    Args:
        base: a model; without ``data`` a run that was evaluated, or a sample log of lm-evaluation-harness.
        smaller: another of the same kind.
        data: rows on which both models are evaluated until every harm is decided; None: take the runs' scores.
        task: kind of work.
        out: folder for ``certificate.json`` and ``certificate.md``; None: nothing is written.
        **options: options of ``limbeck certify``, such as ``margins`` and ``alpha``.

    Raises:
        DataError: a side is no model, run, folder or scores file, or the two have other items.

    >>> import limbeck
    >>> result = limbeck.certify("runs/tiny", "runs/tiny", "toy:stories", limit=8, speed=None)
    >>> result.report["verdict"]["answer"]
    'cannot be told'
    """
    rows = {} if data is None else {"data": data_name(data)}
    values = {"base": model_name(base), "smaller": model_name(smaller), "task": kind_of(task), "out": path_of(out)}
    return job("certify", {**values, **rows, **options})


def verify(source: Named, target: Named, **options: Any) -> JobResult:
    """Compare two deployments of one model, down to the first tensor that differs.

    Args:
        source: the model that was measured.
        target: what was shipped: a folder, a GGUF file, a Hub id.
        **options: options of ``limbeck verify``, such as ``engine`` and ``strict``.

    Raises:
        ModelError: a name leads nowhere.
        RunError: the two differ, and ``strict`` was given.

    >>> import limbeck
    >>> limbeck.verify("runs/tiny", limbeck.load("runs/tiny").save("copy")).report["equal"]
    True
    """
    return job("verify", {"source": model_name(source), "target": model_name(target), **options})


def score(
    predictions: str | os.PathLike[str] | Mapping[str, str],
    data: Data,
    *,
    task: Any,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Score predictions against the truth, without a model.

    Args:
        predictions: a file in the task's format, or a dict of item id and prediction.
        data: rows that were predicted; forms as in ``limbeck.finetune``.
        task: kind of work.
        out: run folder, which ``limbeck.compare`` needs; None: nothing is written.
        **options: options of ``limbeck score``.

    Raises:
        DataError: the file cannot be read, or is of another split.

    >>> import limbeck
    >>> rows = [{"id": str(n), "question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(5)]
    >>> result = limbeck.score({str(n): str(n + 1) for n in range(5)}, rows, task="qa")
    >>> result.metrics["exact"].value
    1.0
    """
    file = predictions_name(predictions) if isinstance(predictions, Mapping) else path_of(predictions)
    values = {"predictions": file, "data": data_name(data), "task": kind_of(task), "out": path_of(out)}
    return job("score", {**values, **options})


def study(
    plan: str | os.PathLike[str] | Mapping[str, Any], *, out: str | os.PathLike[str] | None = None, **options: Any
) -> JobResult:
    """Run every arm of a study under every seed and compare them.

    Args:
        plan: a YAML file, or the same as a dict.
        out: folder of runs, tables and page; None: ``runs/study-`` and the plan's name.
        **options: options of ``limbeck study``, such as ``action`` and ``store``.

    Raises:
        ConfigError: the plan cannot be read, or has an unknown key or arm.
        RunError: no arm could be run.

    >>> import limbeck
    >>> values = {"model": "runs/tiny", "data": "toy:stories", "limit": 4, "probes": "off"}
    >>> arms = {name: {"verb": "evaluate", "values": values} for name in ("one", "two")}
    >>> result = limbeck.study({"title": "Twice the same", "arms": arms})
    >>> list(result.report["arms"])
    ['one', 'two']
    """
    return job("study", {"plan": plan_name(plan), "out": path_of(out), **options})


def fit(
    search: str | os.PathLike[str] | Mapping[str, Any], *, out: str | os.PathLike[str] | None = None, **options: Any
) -> JobResult:
    """Search for the best model under limits, and measure every limit again.

    Args:
        search: a YAML file, or the same as a dict.
        out: folder of candidates, model and report; None: ``runs/fit-`` and the search's name.
        **options: options of ``limbeck fit``, such as ``limits``, ``objective`` and ``trials``.

    Raises:
        ConfigError: the search, a limit or the storage cannot be read.
        RunError: no candidate could be made.

    >>> import limbeck
    >>> rows = {"data": "toy:stories", "limit": 4}
    >>> rounding = {"name": "rounded", "verb": "quantize", "values": {"model": "@base", **rows}}
    >>> search = {"base": "runs/tiny", "pipelines": {"rounding": [rounding]}, "measure": {"stories": rows}}
    >>> search |= {"objective": "minimise bytes", "trials": 1, "startup": 1}
    >>> result = limbeck.fit(search, out="runs/fit")
    >>> result.report["trials"], result.model.parameters > 0
    (1, True)
    """
    return job("fit", {"search": plan_name(search), "out": path_of(out), **options})


def report(
    *runs: str | os.PathLike[str] | JobResult, out: str | os.PathLike[str] | None = None, **options: Any
) -> JobResult:
    """Write one HTML page of finished runs; ``open()`` of the result shows it.

    Args:
        *runs: run folders or results; the first is the reference that the others are compared with.
        out: folder for ``report.html``; None: the first run's.
        **options: options of ``limbeck report``, such as ``title``.

    Raises:
        DataError: a folder is no finished run, or two runs have one name.

    >>> import limbeck
    >>> result = limbeck.report("runs/tiny", out="runs/page")
    >>> result.open(show=False).name
    'report.html'
    """
    return job("report", {"runs": [model_name(run) for run in runs], "out": path_of(out), **options})
