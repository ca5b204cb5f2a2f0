"""Signals are a request within, and what they were outside."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from limbeck.train.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_handlers_come_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGTERM)  # a second one of this kind still only asks
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_handler_from_outside_python_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: seen.append((number, handler)))
    with StopRequest():
        pass
    assert seen[2:] == [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL)]


def test_another_thread_takes_no_signal() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
