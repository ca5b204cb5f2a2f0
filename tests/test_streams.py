"""Closed streams, odd encodings and arguments that are no text: one sentence and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from limbeck import cli
from limbeck.errors import LimbeckWarning
from tests.reference.commands import Limbeck, refused


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{limbeck} --version >&-", 0),
        ("{limbeck} --version 2>&-", 0),
        ("{limbeck} evaluate >&-", 2),
        ("{limbeck} evaluate 2>&-", 2),
        ("{limbeck} evaluate >&- 2>&-", 2),
        ("{limbeck} info /nowhere/at/all --json 2>&-", 2),
        ("PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C {limbeck} info 'n\u00e4h'", 2),
        ("{limbeck} info $'\\xff\\xfe'", 2),
        ("{limbeck} info ''", 2),
        ("{limbeck} info " + "x" * 300, 2),
        ("{limbeck} generate x --seed 99999999999999999999999", 2),
        ("{limbeck} generate x --beams 99999999", 2),
    ],
)
def test_streams_and_arguments(shell: str, code: int) -> None:
    command = shell.format(limbeck=f"{sys.executable} -m limbeck")
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode == code, said
    assert "Traceback" not in said and "unexpected" not in said and "Exception ignored" not in said, said


def test_arguments_that_are_no_text_are_refused(limbeck: Limbeck) -> None:
    refused(limbeck("info", "\udcff"), "argument 2", "is not UTF-8")
    refused(limbeck("info", "a\0b"), "argument 2 holds a zero byte")


def test_our_own_warnings_are_heard_and_those_of_libraries_are_not() -> None:
    program = (
        "import warnings\nfrom limbeck import cli\nfrom limbeck.errors import LimbeckWarning\ncli._hush()\n"
        "warnings.warn('a library says so')\nwarnings.warn('a checkpoint\\nis damaged', LimbeckWarning)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "limbeck: warning: a checkpoint is damaged\n"
    assert issubclass(LimbeckWarning, UserWarning) and cli.__all__ == ["main"]
