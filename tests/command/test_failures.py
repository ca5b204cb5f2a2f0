from __future__ import annotations

import click
import pytest

from limbeck.command.failures import Failure, failure_of
from limbeck.errors import DataError, Interrupted, RunError


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (DataError("x.csv is empty"), Failure("x.csv is empty", 2)),
        (RunError("the disk\n  refused"), Failure("the disk refused", 1)),
        (Interrupted("saved"), Failure("saved", 130)),
        (KeyboardInterrupt(), Failure("interrupted", 130)),
        (click.Abort(), Failure("interrupted", 130)),
        (click.UsageError("no"), Failure("no", 2)),
        (BrokenPipeError(), Failure("", 1)),
        (SystemExit(3), Failure("", 3)),
        (SystemExit("why"), Failure("", 1)),
        (AssertionError(), Failure("unexpected AssertionError (LIMBECK_TRACEBACK=1 shows where)", 1)),
        (OSError(5, "Input/output error"), Failure("unexpected OSError: [Errno 5] Input/output error "
                                                   "(LIMBECK_TRACEBACK=1 shows where)", 1)),
    ],
)  # fmt: skip
def test_every_exception_is_a_sentence_and_a_code(error: BaseException, failure: Failure) -> None:
    assert failure_of(error) == failure


def test_a_long_message_is_cut() -> None:
    assert len(failure_of(ValueError("x" * 9999)).message) < 2100


def test_the_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMBECK_TRACEBACK", "1")
    assert failure_of(ValueError("x")) == Failure("unexpected ValueError: x", 1)
    assert "ValueError: x" in capsys.readouterr().err
