"""Signals are a request within, and what they were outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import limbeck
from limbeck.train import signals
from limbeck.train.checkpoint import Checkpoints
from limbeck.train.signals import StepLeft, StopRequest


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
    assert seen[3:] == [(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]


def test_another_thread_takes_no_signal() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def test_a_long_section_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.1)
    with StopRequest() as stop:
        with stop.leavable():
            os.kill(os.getpid(), signal.SIGINT)
            wait(0.02)  # a short one ends by itself
        assert stop.asked
        wait(0.3)  # what may not be left goes on
        begun = False
        with pytest.raises(StepLeft), stop.leavable():
            begun = True  # and what begins too late does not begin
        assert not begun
    with StopRequest() as stop, pytest.raises(StepLeft), stop.leavable():
        os.kill(os.getpid(), signal.SIGTERM)
        wait(10)
    assert capsys.readouterr().err.count("stopping after this step") == 2


def test_the_thread_ends_with_the_request_and_the_signals_fd_comes_back() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with StopRequest():
        assert any(t.name == "limbeck-signals" for t in threading.enumerate())
    assert not any(t.name == "limbeck-signals" for t in threading.enumerate())
    assert signal.set_wakeup_fd(before) == before


STUCK = """
import sys, torch
from pathlib import Path
from tests.train.test_loop import Random, Recipe, settings, tiny
from tests.reference.training import PlainNextToken
from limbeck.run import Run
from limbeck.train.loop import train

class Stuck(PlainNextToken):
    def __call__(self, model, batch, counts=None):
        if self.seen == 3:
            print("stuck", flush=True)
            big = torch.ones(12000, 12000)
            torch.mm(big, big)  # one operation of many seconds
        return super().__call__(model, batch)

    seen = 0
objective = Stuck()
with Run.create(Path(sys.argv[1]), Recipe()) as run:
    def seen(step, _): Stuck.seen = step
    train(tiny(), objective, Random(), settings(checkpoint_every=1), run=run, progress=False, on_step=seen)
"""


@pytest.mark.slow
def test_within_one_long_operation_ctrl_c_is_answered_in_a_second_and_twice_ends_it(tmp_path: Path) -> None:
    root = Path(limbeck.__file__).parents[2]
    here = os.environ | {"PYTHONPATH": os.pathsep.join((str(root / "src"), str(root))), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=here, cwd=root,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        try:
            assert process.stdout.readline() == "stuck\n", process.stderr.read()
            time.sleep(0.2)
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "\n" and "stopping after this step" in process.stderr.readline()
            assert time.monotonic() - asked < 1
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 130 and time.monotonic() - asked < 4
            assert "what was saved before it stays" in process.stderr.read()
        finally:
            process.kill()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 3
