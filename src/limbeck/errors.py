"""Every error that Limbeck raises on purpose.

::

    LimbeckError                    exit code 1: it failed
    ├── InputError                  exit code 2: what the user gave is wrong
    │   ├── ConfigError             an unknown key, a value out of range, two options that exclude each other
    │   ├── DataError               a missing file, a wrong column, an empty set, a label outside the set
    │   │   └── NothingToLearnError a row with no target left after masking and truncation (names the row)
    │   ├── ModelError              a model that cannot be loaded: unsupported family, only pickled weights
    │   │   ├── CheckpointError     truncated, oversized or mismatched weights (names file and key)
    │   │   └── VocabularyError     teacher and student tokenizers that encode differently (names where they part)
    │   └── TechniqueError          targets that match nothing, a rank too large, a merge into a quantized base
    ├── RunError                    it went wrong on the way
    │   ├── BusyError               another process is writing the same run
    │   ├── DivergedError           a loss or gradient that is NaN or infinite (names step and batch)
    │   └── StorageError            the disk refused a write; what was there before is whole
    └── Interrupted                 exit code 130: Ctrl-C; a checkpoint was saved first

A message is one sentence: what is wrong, where, and what to do about it. What goes on all the same is a
``LimbeckWarning``: the command line shows those of the project and mutes those of libraries.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "InputError",
    "Interrupted",
    "LimbeckError",
    "LimbeckWarning",
    "ModelError",
    "NothingToLearnError",
    "RunError",
    "StorageError",
    "TechniqueError",
    "VocabularyError",
    "nearest",
]


class LimbeckError(Exception):
    """Root of the tree: something failed.

    >>> import limbeck
    >>> try:
    ...     limbeck.load("runs/tinny")
    ... except limbeck.LimbeckError as error:
    ...     print(type(error).__name__, error.exit_code)
    ModelError 2
    """

    exit_code = 1


class LimbeckWarning(UserWarning):
    """Something that a person should hear, though the work goes on."""


class InputError(LimbeckError):
    """What the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """An unknown key, a bad value, or options that exclude each other."""


class DataError(InputError):
    """Data that is missing, empty, or not shaped as told."""


class NothingToLearnError(DataError):
    """A row whose targets are all masked or truncated away (I6)."""


class ModelError(InputError):
    """A model that cannot be loaded."""


class CheckpointError(ModelError):
    """Weights that are truncated, oversized or mismatched; names file and key (I24)."""


class VocabularyError(ModelError):
    """Two tokenizers that were to be alike and are not (I10)."""


class TechniqueError(InputError):
    """A technique that does not fit the model it was given."""


class RunError(LimbeckError):
    """A run that went wrong on the way."""


class BusyError(RunError):
    """Another process is writing the same run."""


class DivergedError(RunError):
    """A loss or gradient that is not finite; names step and rows."""


class StorageError(RunError):
    """A write that the disk refused; what was there before is whole (I23)."""


class Interrupted(LimbeckError):  # noqa: N818 - it is a request, not an error
    """Ctrl-C, after what was done was saved.

    Attributes:
        values: what was done, as plain values for ``--json``.
    """

    exit_code = 130

    def __init__(self, message: str, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.values: Mapping[str, Any] = values or {}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``known``, or ``""`` where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
