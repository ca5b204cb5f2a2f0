"""The bar is on stderr, on a terminal only."""

from __future__ import annotations

import io
import sys

import pytest

from limbeck.train.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, True), (Terminal, False)])
def test_it_is_silent(stream: type[io.StringIO], shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    with Bar(10, 0, shown) as bar:
        bar.update(3, 1.0, 100.0)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_it_shows_loss_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with Bar(10, 2, True) as bar:
        bar.update(4, 1.25, 12345.6)
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    for part in ("training", "4/10", "loss 1.2500", "12,346 tok/s", "left"):
        assert part in text
    assert capsys.readouterr().out == ""
