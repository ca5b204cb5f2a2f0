"""From the arguments of a function to the options of a verb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.config import build
from limbeck.given import Data, data_name
from limbeck.handle import LanguageModel, model_name, nested
from limbeck.jobs.recipe import default_folder
from limbeck.results import JobResult
from limbeck.verbs.table import recipe

__all__ = ["Named", "kind_of", "model_options", "path_of", "run_folder", "training_options"]

Named = str | os.PathLike[str] | LanguageModel | JobResult
"""A model: a folder, run, Hub id or GGUF file, a loaded model, or the result that made it."""


def training_options(
    data: Data, task: Any, techniques: Sequence[Any], valid: Data | None, test: Data | None, out: Any
) -> dict[str, Any]:
    """Return the values that every training verb has."""
    parts = {"valid": valid, "test": test}
    return {
        "data": data_name(data),
        "techniques": [kind_of(one) for one in techniques],
        "out": path_of(out),
        **({} if task is None else {"task": kind_of(task)}),
        **{name: data_name(part) for name, part in parts.items() if part is not None},
    }


def model_options(model: Named, codes: bool = False) -> dict[str, Any]:
    """Return how a verb opens ``model``; ``codes``: the verb can keep a GGUF file's codes."""
    if not isinstance(model, LanguageModel):
        return {"model": model_name(model)}
    given = model.given()
    return given if codes else {key: value for key, value in given.items() if key != "keep_codes"}


def kind_of(value: Any) -> Any:
    """Return a name as the value of that kind; anything else as it is."""
    return {"kind": value.replace("-", "_") if value != "qaft" else value} if isinstance(value, str) else value


def path_of(path: str | os.PathLike[str] | None) -> str | None:
    """Return a path as text, None as None."""
    return None if path is None else os.fspath(path)


def run_folder(verb: str, values: Mapping[str, Any]) -> str:
    """Return a run folder named after the options, so that the same call finds its own run again."""
    return str(default_folder(build(recipe(verb), {**nested(verb, values), "out": "run"}, f"the options of {verb}")))
