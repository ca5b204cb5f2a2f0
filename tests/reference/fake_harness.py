"""What ``jobs.harness`` reaches by name, without lm-eval: two tasks whose scores depend on the model's size."""

from __future__ import annotations

import numpy as np

from limbeck.formats.load import Bundle
from limbeck.jobs.harness import Asked, Found, HarnessFigure
from limbeck.measure.classes import class_columns
from limbeck.measure.scores import Scores
from limbeck.tasks.task import Result

__all__ = ["ASKED", "run"]

ASKED: list[Asked] = []
"""What was asked, call by call."""


def run(bundle: Bundle, asked: Asked) -> list[Found]:
    """Made-up results of the tasks asked for: the wider the model, the better its answers."""
    ASKED.append(asked)
    ids = [f"row{i}" for i in range(asked.limit or 12)]
    good = bundle.model.config.hidden_size > 16
    found = []
    for name in asked.tasks:
        truth = [i % 2 for i in range(len(ids))]
        columns = class_columns(truth, truth if good else [1] * len(ids), ("no", "yes"))
        columns |= {"acc": columns["correct"], "nll": np.full(len(ids), 2.0), "words": np.full(len(ids), 4.0)}
        figures = (
            HarnessFigure(name="acc", form="mean", columns=("acc",)),
            HarnessFigure(name="word_perplexity", form="exp", columns=("nll", "words"), better="lower"),
            HarnessFigure(name="bits", form="bits", columns=("nll", "words"), better="lower", unit="bits"),
            HarnessFigure(name="majority rate", form="class", columns=("true:no", "true:yes", "1")),
        )
        protocol = {"task": name, "shots": asked.shots or 0, "corpus": "made"}
        result = Result(
            Scores.of(ids, **columns), protocol, [("q", "yes", "no")], {"told": ["a word"]}, dict.fromkeys(ids, "yes")
        )
        found.append(Found(name, result, figures, {"f1": 0.25}))
    return found
