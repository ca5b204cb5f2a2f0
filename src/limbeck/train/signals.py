"""Ctrl-C as a request: finish the step, save, then stop; a step that takes long is left instead.

Python runs a handler between two of its instructions only, and one operation of torch may take minutes. So a thread of
its own hears of a signal at once (``signal.set_wakeup_fd``), says so, and sees to it that the request is met.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StepLeft", "StopRequest"]

PATIENCE_S = 1.0
"""Seconds that a step may still take after a signal, and a process after a second Ctrl-C."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LEAVE = signal.SIGUSR2  # what the thread sends to its own process: leave the section


class StepLeft(BaseException):
    """A section that may be left was left: nothing of it counts."""


class StopRequest:
    """While entered, SIGINT and SIGTERM set ``asked`` instead of killing; a second SIGINT interrupts at once.

    ``leavable`` sections that have not ended ``PATIENCE_S`` after the first signal are left by ``StepLeft``. Where a
    second SIGINT is not met within that time, as one long operation runs, the process ends with 130; files are written
    whole or not at all, so the last checkpoint stays. The handlers from before come back at the end. Outside the main
    thread signals cannot be taken, and none is.

    Attributes:
        asked: a signal came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._overdue = self._leavable = False
        self._before: dict[signal.Signals, Any] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._take)
            self._before[_LEAVE] = signal.signal(_LEAVE, self._leave)
            self._watch = _Watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for number, handler in self._before.items():
            # None: a handler that was not set from Python cannot be put back; the default is the nearest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    @contextmanager
    def leavable(self) -> Iterator[None]:
        """Run a section that may be left in the middle: nothing that it changes is kept or saved.

        Raises:
            StepLeft: a signal came more than ``PATIENCE_S`` ago.
        """
        self._leavable = True
        try:
            self._check()
            yield
        finally:
            self._leavable = False

    def _check(self) -> None:
        if self._overdue and self._leavable:
            self._leavable = False
            raise StepLeft

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def _leave(self, *_: object) -> None:
        self._check()

    def overdue(self) -> None:
        """Leave the section that runs now, or the next one that may be left; called by the watching thread."""
        self._overdue = True
        _thread.interrupt_main(_LEAVE)


class _Watch:
    """The thread that hears of signals at once."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._ear, self._mouth = socket.socketpair()
        for end in (self._ear, self._mouth):
            end.setblocking(False)
        self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="limbeck-signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        signal.set_wakeup_fd(self._before)
        self._mouth.send(b"\0")
        self._thread.join()
        self._ear.close()
        self._mouth.close()

    def _heard(self, seconds: float | None = None) -> int | None:
        """Return the next signal, 0 at the end; None: there was none in so many seconds."""
        while True:
            if not select.select([self._ear], [], [], seconds)[0]:
                return None
            number = self._ear.recv(1)[0]
            if number in (*_SIGNALS, 0):
                return number

    def _run(self) -> None:
        if not self._heard():
            return
        _say("stopping after this step, or within it if it takes long; Ctrl-C again stops at once")
        number = self._heard(PATIENCE_S)
        if number is None:
            self._stop.overdue()
        while number != signal.SIGINT:
            if number == 0:
                return
            number = self._heard()
        if self._heard(PATIENCE_S) is None:
            _say("stopped within a step; what was saved before it stays")
            os._exit(130)


def _say(text: str) -> None:
    try:
        print(f"\n{text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads stderr any more
        return
