"""What tasks with classes share: labels, texts for a head, and the result of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data.batch import Example, collate
from limbeck.data.border import class_of
from limbeck.data.prompts import EncodingReport
from limbeck.data.readers import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.session import evaluating
from limbeck.errors import DataError
from limbeck.measure.classes import class_columns, class_counts
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, ratio
from limbeck.model.decoder import Decoder
from limbeck.model.heads import class_logits, classes_of
from limbeck.tasks.task import Result

__all__ = [
    "NATS_PER_ITEM",
    "class_result",
    "encode_texts",
    "head_log_probs",
    "labels_of",
    "scored_classes",
]

Floats = NDArray[np.float64]

NATS_PER_ITEM = ratio("nll", COUNT, name="nats per item", better="lower", unit="nats/item", bounds=(0, math.inf))
"""Mean negative log-likelihood of the true class."""


def labels_of(rows: Rows, field: str, labels: Sequence[str]) -> list[int]:
    """Return the class of every row (see ``border.class_of``).

    Raises:
        DataError: a label outside ``labels``; names the row.
    """
    out = []
    for row in rows:
        found = class_of(row.value(field, rows.source), labels)
        if found is None:
            known, name = ", ".join(labels), row.text(field, rows.source)
            raise DataError(f"row {row.id} of {rows.source} has the label '{name}', which is none of {known}")
        out.append(found)
    return out


def encode_texts(
    rows: Rows,
    texts: Sequence[str],
    classes: Sequence[int],
    tokenizer: Tokenizer,
    context: int,
    *,
    begin: bool | None = None,
    keep: Literal["start", "end"] = "start",
) -> tuple[list[Example], EncodingReport]:
    """Tokenise texts for a head of classes: begin token, text, end token, at which a head of the last token reads.

    No token is a target. A text longer than the context keeps its start or its end, and is counted.

    Raises:
        DataError: an empty text, a context without room, or a begin token that the tokenizer has not.
    """
    wanted = tokenizer.begins_with_bos if begin is None else begin
    if wanted and tokenizer.bos_id is None:
        raise DataError("the tokenizer has no begin token to put before each text; set begin=false")
    first = [tokenizer.bos_id] if wanted and tokenizer.bos_id is not None else []
    room = context - len(first) - 1
    if room < 1:
        raise DataError(f"a context of {context} tokens has no room for a text")
    examples, cut, tokens = [], [], 0
    for index, (row, ids, label) in enumerate(zip(rows, tokenizer.encode_many(texts), classes, strict=True)):
        if not ids:
            raise DataError(f"row {row.id} of {rows.source} has no text: fill it in or leave the row out")
        if len(ids) > room:
            cut.append(row.id)
            ids = ids[:room] if keep == "start" else ids[-room:]
        whole = np.asarray([*first, *ids, tokenizer.eos_id], dtype=np.int32)
        tokens += len(whole)
        examples.append(Example(index, row.id, whole, np.zeros(len(whole), dtype=np.bool_), label=label))
    return examples, EncodingReport(len(rows), len(examples), tokens, 0, tuple(cut))


def head_log_probs(model: Decoder, examples: Sequence[Example], batch_size: int) -> Floats:
    """Return (n, C) log-probability of each class, in nats; texts of near-equal length share a batch.

    Raises:
        ConfigError: the model has no head of classes.
    """
    classes = classes_of(model)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    out = np.zeros((len(examples), len(classes.labels)))
    with evaluating(model):
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch = collate([[examples[i]] for i in chosen]).to(model.device)
            out[chosen] = class_logits(model, batch, classes.pool).double().log_softmax(dim=-1).cpu().numpy()
    return out


def class_result(
    rows: Rows,
    truth: Sequence[int],
    log_probs: Floats,
    labels: Sequence[str],
    protocol: Mapping[str, Any],
    *,
    predicted: Sequence[int] | None = None,
    notes: Mapping[str, Any] | None = None,
    more: Mapping[str, Floats] | None = None,
    samples: Sequence[tuple[str, str, str]] = (),
) -> Result:
    """Gather per-item scores, histograms and warnings.

    Args:
        rows: the items.
        truth: (n,) class of each.
        log_probs: (n, C) log-probability of each class, in nats.
        labels: names of the classes.
        protocol: what the figures rest on.
        predicted: (n,) class each was given, -1 for none; None: the likeliest.
        notes: further counts.
        more: further columns.
        samples: to look at.
    """
    chosen = list(map(int, log_probs.argmax(axis=1))) if predicted is None else list(predicted)
    items = np.arange(len(truth))
    sure = {"nll": -log_probs[items, list(truth)], "confidence": np.exp(log_probs.max(axis=1)), **(more or {})}
    return _result(rows, truth, chosen, labels, protocol, sure, notes, samples)


def scored_classes(
    predictions: Mapping[str, str], rows: Rows, field: str, labels: Sequence[str], protocol: Mapping[str, Any]
) -> Result:
    """Score classes that were read from a file; one that is none of ``labels`` counts as no answer.

    Args:
        predictions: item id -> class.
        rows: the items, in the order of ``predictions``.
        field: of ``rows`` that holds the true class.
        labels: names of the classes.
        protocol: what the figures rest on.

    Raises:
        DataError: a true label outside ``labels``.
    """
    found = [class_of(predictions[row.id], labels) for row in rows]
    chosen = [-1 if c is None else c for c in found]
    return _result(rows, labels_of(rows, field, labels), chosen, labels, protocol, {}, None, ())


def _result(
    rows: Rows,
    truth: Sequence[int],
    chosen: Sequence[int],
    labels: Sequence[str],
    protocol: Mapping[str, Any],
    sure: Mapping[str, Floats],
    notes: Mapping[str, Any] | None,
    samples: Sequence[tuple[str, str, str]],
) -> Result:
    columns = class_columns(truth, chosen, labels) | dict(sure)
    scores = Scores.of([row.id for row in rows], **columns)
    counts = class_counts(scores)
    described = {
        "told": list(counts.sentences()),
        "classes": counts.describe(),
        "dropped_rows": len(rows.dropped),
        **(notes or {}),
    }
    predictions = {row.id: "none" if c < 0 else labels[c] for row, c in zip(rows, chosen, strict=True)}
    return Result(scores, {"corpus": rows.source, "labels": list(labels), **protocol}, samples, described, predictions)
