"""Data and models as callers give them: paths, rows, tables and objects, each turned into a name that a verb reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, DataError
from limbeck.storage import plain, write_text

__all__ = ["Data", "cache_folder", "data_name", "plan_name", "predictions_name"]

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Sequence[str] | Any
"""A path, ``toy:NAME`` or Hub id; dicts or texts; an Arrow table, a ``datasets.Dataset`` or a pandas frame."""


def cache_folder() -> Path:
    """Return the folder for rows given as objects: ``LIMBECK_CACHE``, or ``limbeck`` in the user's cache folder."""
    named = os.environ.get("LIMBECK_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def data_name(data: Data) -> str:
    """Return the name of a data set that a verb reads; rows are written to a file named after their content.

    Equal rows have one name, so the same call finds its own run again.

    Raises:
        DataError: an object of another kind, a row that is no mapping, or no rows at all.
    """
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    rows = _rows(data)
    if not rows:
        raise DataError("the data has no rows: give at least one")
    try:
        text = "".join(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"the rows hold a value that is no text, number or list: {error}") from None
    return _kept(text, "data/rows-{}.jsonl")


def plan_name(plan: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """Return the name of a study's or a search's file; a plan given as a dict is written to a file.

    Raises:
        ConfigError: a value that is no text, number, list or dict.
    """
    if not isinstance(plan, Mapping):
        return os.fspath(plan)
    try:
        text = json.dumps(plain(plan), ensure_ascii=False, allow_nan=False)  # which YAML reads
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the plan holds a value that is no text, number, list or dict: {error}") from None
    return _kept(text, "plans/{}.yaml")


def predictions_name(predictions: Mapping[str, str]) -> str:
    """Return the name of a file that holds predictions by item id."""
    return _kept(json.dumps(dict(predictions), ensure_ascii=False), "predictions/{}.json")


def _kept(text: str, name: str) -> str:
    """Write ``text`` to a file of the cache whose ``name`` holds the hash of the text, and return its path."""
    file = cache_folder() / name.format(hashlib.sha256(text.encode()).hexdigest()[:16])
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return str(file)


def _rows(data: Any) -> list[dict[str, Any]]:
    """Return the rows of an object as plain dicts."""
    if hasattr(data, "to_pylist"):  # Arrow
        return list(data.to_pylist())
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas; missing cells are no values
        records = data.astype(object).where(data.notna(), None).to_dict(orient="records")
        return [{str(key): value for key, value in row.items()} for row in records]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        kind = type(data).__name__
        raise DataError(f"data of type {kind} cannot be read: give a path, a list of dicts, an Arrow table or a frame")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(data):  # datasets.Dataset yields dicts
        if isinstance(row, str):
            rows.append({"text": row})
        elif isinstance(row, Mapping):
            rows.append(dict(row))
        else:
            raise DataError(f"row {number} is a {type(row).__name__}: give dicts of field and value, or texts")
    return rows
