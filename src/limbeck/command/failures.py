"""What an exception becomes: one sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from limbeck.errors import Interrupted, LimbeckError

__all__ = ["Failure", "failure_of"]

_TRACEBACK = "LIMBECK_TRACEBACK"


@dataclass(frozen=True)
class Failure:
    """How a command ended.

    Attributes:
        message: one sentence, or empty where nothing is to be said.
        exit_code: 2 bad input, 1 failure, 130 Ctrl-C.
        values: what was done before it ended, as plain values.
    """

    message: str
    exit_code: int
    values: Mapping[str, Any] = field(default_factory=dict)


def failure_of(error: BaseException) -> Failure:
    """Put ``error`` into one sentence; with LIMBECK_TRACEBACK set, its traceback goes to stderr first."""
    if os.environ.get(_TRACEBACK) and not isinstance(error, click.ClickException | SystemExit):
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, Interrupted):
        return Failure(_one_line(str(error)), error.exit_code, error.values)
    if isinstance(error, LimbeckError):
        return Failure(_one_line(str(error)), error.exit_code)
    if isinstance(error, click.ClickException):
        return Failure(_one_line(error.format_message()), error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Failure("interrupted", 130)
    if isinstance(error, SystemExit):  # click's answer to a reader that went away; nothing here exits by itself
        return Failure("", error.code if isinstance(error.code, int) else 1)
    if isinstance(error, BrokenPipeError):
        return Failure("", 1)  # the reader went away, as in `| head`: nobody is left to be told
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(f"the disk is full{_at(error)}: free some space or choose another --out", 1)
    if isinstance(error, PermissionError):
        return Failure(f"no permission to open {error.filename}: choose another place or change its rights", 1)
    if isinstance(error, UnicodeEncodeError):
        return Failure("a name or text holds what this system's encoding cannot: set PYTHONUTF8=1", 2)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Failure(f"a name is longer than file systems allow{_at(error)}: shorten it", 2)
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return Failure("out of memory: take a smaller --batch-size, --context or model", 1)
    hint = "" if os.environ.get(_TRACEBACK) else f" ({_TRACEBACK}=1 shows where)"
    said = _one_line(str(error))
    return Failure(f"unexpected {type(error).__name__}{': ' + said if said else ''}{hint}", 1)


def _out_of_memory(error: BaseException) -> bool:
    """Return whether torch says so: on a GPU by its own class, on a CPU by the text of a RuntimeError."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _at(error: OSError) -> str:
    return f" (writing {error.filename})" if error.filename else ""


def _one_line(text: str, longest: int = 2000) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."
