"""Functions of ``import limbeck`` that load, train and quantize models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.api.forms import Named, kind_of, model_options, path_of, run_folder, training_options
from limbeck.given import Data, data_name
from limbeck.handle import LanguageModel, job, model_name
from limbeck.results import JobResult
from limbeck.techniques.technique import Technique

__all__ = ["distill", "dpo", "finetune", "load", "pretrain", "quantize", "self_distill", "synthesize"]


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
    return job("pretrain", {"data": data_name(data), "out": path_of(out), **options})


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
    values = training_options(data, task, techniques, valid, test, out)
    return job("finetune", {**values, **model_options(model), **options})


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
    values = training_options(data, task, techniques, valid, test, out)
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
    return job("dpo", {**training_options(data, None, techniques, valid, test, out), **model_options(model), **options})


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
    """Quantize a model after training, and compare it with the original.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        technique: such as ``limbeck.GPTQ(bits=4)``, or a name.
        data: rows to measure on; None: size and speed alone are measured, and the result says so. The calibration
            rows are never measured on, since figures on them are too good.
        calibration: rows that the technique looks at, where it needs any.
        task: kind of work that is measured.
        out: run folder; None: ``runs/quantize-`` and a hash of the options.
        **options: options of ``limbeck quantize``.

    Raises:
        TechniqueError: the technique needs calibration rows and has none, or the model is quantized already.

    >>> import limbeck
    >>> result = limbeck.quantize("runs/tiny", limbeck.RTN(bits=8), data="toy:stories", limit=10)
    >>> sorted(result.report["bytes"])[:2]
    ['memory', 'original']
    """
    rows = {"data": data, "calibration": calibration}
    values: dict[str, Any] = {"technique": kind_of(technique), "task": kind_of(task), **model_options(model)}
    values |= {name: data_name(some) for name, some in rows.items() if some is not None}
    folder = path_of(out) or run_folder("quantize", {**values, **options})
    return job("quantize", {**values, "out": folder, **options})


def self_distill(
    model: Named,
    data: Data,
    *,
    valid: Data | None = None,
    test: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> JobResult:
    """Let a model make its own paraphrase pairs, train on them and compare with plain fine-tuning.

    Args:
        model: a name, a loaded model, or the result of an earlier job.
        data: rows with ``sentence1``, ``sentence2`` and ``is_duplicate``; forms as in ``limbeck.finetune``.
        valid: validation rows; None: a share of the data.
        test: test rows; None: a share of the data.
        out: run folder; None: ``runs/self-distill-`` and a hash of the options.
        **options: options of ``limbeck self-distill``, such as ``distilling``.

    >>> import limbeck
    >>> few = {"arms": ["soft"], "soft_samples": 4, "soft_tokens": 4}
    >>> result = limbeck.self_distill("runs/tiny", "toy:paraphrase", limit=60, epochs=1, distilling=few)
    >>> list(result.report["table"])
    ['plain', 'soft']
    """
    parts = {"valid": valid, "test": test}
    values = {"data": data_name(data), "out": path_of(out), **model_options(model)}
    values |= {name: data_name(part) for name, part in parts.items() if part is not None}
    return job("self-distill", {**values, **options})


def synthesize(
    kind: str,
    model: Named | None = None,
    *,
    out: str | os.PathLike[str],
    answers: Data | None = None,
    against: Sequence[Data] = (),
    **options: Any,
) -> JobResult:
    """Ask a teacher for training data, or filter answers that are there already.

    Args:
        kind: ``sonnets``, ``paraphrase``, ``restate``, ``qa`` or ``instructions``.
        model: the teacher; with ``endpoint`` among the options its name there.
        out: folder for the answers, the rows kept and dropped, and the datasheet.
        answers: rows to filter in place of asking a teacher.
        against: data sets that no row may be shared with.
        **options: options of ``limbeck synthesize``, such as ``count``.

    Raises:
        ConfigError: neither a teacher nor answers, or both.

    >>> import limbeck
    >>> rows = [{"question": f"How far is town {n}?", "answer": f"{n} miles"} for n in range(8)]
    >>> result = limbeck.synthesize("qa", answers=rows, out="runs/made")
    >>> result.report["verb"], result.path.name
    ('synthesize', 'made')
    """
    values: dict[str, Any] = {"kind": kind, "out": path_of(out), "against": [data_name(some) for some in against]}
    if model is not None:
        values["model"] = model_name(model)
    if answers is not None:
        values["answers"] = data_name(answers)
    return job("synthesize", {**values, **options})
