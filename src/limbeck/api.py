"""The functions behind ``import limbeck``: each builds the config of a verb and runs the job that the command runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.config import build
from limbeck.given import Data, data_name
from limbeck.handle import LanguageModel, job, model_name, nested
from limbeck.jobs.recipe import default_folder
from limbeck.results import JobResult
from limbeck.techniques.technique import Technique
from limbeck.verbs.table import recipe

__all__ = [
    "audit",
    "compare",
    "distill",
    "dpo",
    "evaluate",
    "finetune",
    "info",
    "load",
    "pretrain",
    "quantize",
]

Named = str | os.PathLike[str] | LanguageModel | JobResult
"""A model: a folder, run, Hub id or GGUF file, a loaded model, or the result that made it."""


def load(
    name: str | os.PathLike[str],
    *,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    keep_codes: bool = False,
) -> LanguageModel:
    """Load a model.

    Args:
        name: a folder, a run folder, a GGUF file, a PEFT adapter's folder, or a Hub id such as ``gpt2``.
        adapter: a PEFT adapter to put beside the weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (fp32), ``fp32``, ``bf16``, ``fp16`` or ``fp64``.

        keep_codes: keep the matrices of a GGUF file that are in Q8_0, Q4_0 or Q4_1 as codes, not as floats.

    Raises:
        ModelError: the name leads nowhere, or to a model that is not supported.

    >>> import limbeck
    >>> model = limbeck.load("runs/tiny")
    >>> text = model.generate("Once upon a time", max_new_tokens=5)
    >>> "".join(model.stream("Once upon a time", max_new_tokens=5)) == text
    True
    """
    return LanguageModel.load(name, adapter=adapter, device=device, dtype=dtype, keep_codes=keep_codes)


def pretrain(data: Data, *, out: str | os.PathLike[str] | None = None, **options: Any) -> JobResult:
    """Train a model from random weights.

    Args:
        data: see ``limbeck.finetune``.
        out: run folder; None: ``runs/pretrain-`` and a hash of the options.
        **options: options of ``limbeck pretrain``, by the names of its config or of its flags.

    >>> import limbeck
    >>> shape = {"preset": "toy", "layers": 1, "hidden_size": 32, "heads": 2, "kv_heads": 1, "context": 32}
    >>> result = limbeck.pretrain("toy:stories", limit=20, vocab_size=280, architecture=shape, steps=2, probes="off")
    >>> result.model.parameters < 50_000
    True
    """
    return job("pretrain", {"data": data_name(data), "out": _path(out), **options})


def finetune(
    model: Named,
    data: Data,
    *,
    task: Any = "text",
    techniques: Sequence[Any] = (),
    valid: Data | None = None,
    test: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Train a model on a task, whole or through techniques.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        data: training rows: a path, ``toy:NAME`` or Hub id; a list of dicts or texts; an Arrow table, a
            ``datasets.Dataset`` or a pandas frame.
        task: kind of work, such as ``"qa"``, or a task value with options.
        techniques: applied in this order, such as ``[limbeck.LoRA(rank=8)]``; names work too.
        valid: validation rows; None: a share of the data.
        test: test rows; None: a share of the data.
        out: run folder; None: ``runs/finetune-`` and a hash of the options. The same call finds its run again.
        **options: options of ``limbeck finetune``, by the names of its config or of its flags: ``steps=100``.

    Raises:
        LimbeckError: one sentence that says what is wrong, where, and what to do.

    >>> import limbeck
    >>> rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(40)]
    >>> result = limbeck.finetune("runs/tiny", rows, task="qa", techniques=[limbeck.LoRA(rank=2)], steps=2)
    >>> result.path.name.startswith("finetune-")
    True
    """
    return job("finetune", {**_training(data, task, techniques, valid, test, out), **_model(model), **options})


def distill(
    teacher: Named,
    data: Data,
    *,
    student: Named | None = None,
    layers: int | Sequence[int] | None = None,
    task: Any = "text",
    techniques: Sequence[Any] = (),
    valid: Data | None = None,
    test: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Train a smaller model to predict as its teacher does.

    Args:
        teacher: the model to learn from.
        data: see ``limbeck.finetune``.
        student: the model to train; None: a copy of the teacher, or ``architecture`` from the options.
        layers: number of layers of the teacher that the student keeps, or which, counted from 0.
        task: kind of work.
        techniques: applied to the student, after ``layers``.
        valid: validation rows; None: a share of the data.
        test: test rows; None: a share of the data.
        out: run folder; None: ``runs/distill-`` and a hash of the options.
        **options: options of ``limbeck distill``, such as ``alpha``, ``beta``, ``temperature``.

    >>> import limbeck
    >>> result = limbeck.distill(teacher="runs/tiny", layers=1, data="toy:stories", limit=20, steps=2, probes="off")
    >>> result.model.bundle.model.config.layers
    1
    """
    values = _training(data, task, techniques, valid, test, out)
    if layers is not None:
        depth = {"kind": "depth", "layers": layers if isinstance(layers, int) else list(layers)}
        values["techniques"] = [depth, *values["techniques"]]
    chosen = {} if student is None else {"model": model_name(student)}
    return job("distill", {**values, "teacher": model_name(teacher), **chosen, **options})


def dpo(
    model: Named,
    data: Data,
    *,
    techniques: Sequence[Any] = (),
    valid: Data | None = None,
    test: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Train a model on preferred and rejected answers (direct preference optimization).

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        data: rows with ``prompt``, ``chosen`` and ``rejected``; forms as in ``limbeck.finetune``.
        techniques: applied in this order.
        valid: validation rows; None: a share of the data.
        test: test rows; None: a share of the data.
        out: run folder; None: ``runs/dpo-`` and a hash of the options.
        **options: options of ``limbeck dpo``, such as ``beta``.

    >>> import limbeck
    >>> result = limbeck.dpo("runs/tiny", "toy:preferences", limit=20, steps=2, probes="off")
    >>> result.report["verb"]
    'dpo'
    """
    return job("dpo", {**_training(data, None, techniques, valid, test, out), **_model(model), **options})


def quantize(
    model: Named,
    technique: Technique | str | Mapping[str, Any] = "rtn",
    *,
    data: Data | None = None,
    calibration: Data | None = None,
    task: Any = "text",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Quantize a model after training, and measure it beside the original.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        technique: such as ``limbeck.GPTQ(bits=4)``, or a name.
        data: rows to measure on; None: the calibration rows, and the result says so.
        calibration: rows that the technique looks at, where it needs any.
        task: kind of work that is measured.
        out: run folder; None: ``runs/quantize-`` and a hash of the options.
        **options: options of ``limbeck quantize``.

    Raises:
        ConfigError: neither data nor calibration was given.

    >>> import limbeck
    >>> result = limbeck.quantize("runs/tiny", limbeck.RTN(bits=8), data="toy:stories", limit=10)
    >>> sorted(result.report["bytes"])[:2]
    ['memory', 'original']
    """
    measured = data if data is not None else calibration
    values: dict[str, Any] = {"technique": _kind(technique), "task": _kind(task), **_model(model)}
    if measured is not None:
        values["data"] = data_name(measured)
    if calibration is not None:
        values["calibration"] = data_name(calibration)
    return job("quantize", {**values, "out": _path(out) or _folder("quantize", {**values, **options}), **options})


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
    return job(
        "evaluate",
        {**_model(model, codes=True), "data": data_name(data), "task": _kind(task), "out": _path(out), **options},
    )


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
    return job("info", {**_model(model, codes=True), **options})


def _training(
    data: Data, task: Any, techniques: Sequence[Any], valid: Data | None, test: Data | None, out: Any
) -> dict[str, Any]:
    """Return the values that every training verb has."""
    parts = {"valid": valid, "test": test}
    return {
        "data": data_name(data),
        "techniques": [_kind(one) for one in techniques],
        "out": _path(out),
        **({} if task is None else {"task": _kind(task)}),
        **{name: data_name(part) for name, part in parts.items() if part is not None},
    }


def _model(model: Named, codes: bool = False) -> dict[str, Any]:
    """Return how a verb opens ``model``; ``codes``: the verb can keep a GGUF file's codes."""
    if not isinstance(model, LanguageModel):
        return {"model": model_name(model)}
    given = model.given()
    return given if codes else {key: value for key, value in given.items() if key != "keep_codes"}


def _kind(value: Any) -> Any:
    """Return a name as the value of that kind; anything else as it is."""
    return {"kind": value.replace("-", "_") if value != "qaft" else value} if isinstance(value, str) else value


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _folder(verb: str, values: Mapping[str, Any]) -> str:
    """Return a run folder named after the options, so that the same call finds its own run again."""
    return str(default_folder(build(recipe(verb), {**nested(verb, values), "out": "run"}, f"the options of {verb}")))
