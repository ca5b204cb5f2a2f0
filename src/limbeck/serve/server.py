"""The process that serves: its socket, its signals, and an end that lets running answers finish."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from limbeck.errors import ConfigError
from limbeck.serve.app import application
from limbeck.serve.service import Service

__all__ = ["listen", "serve"]

_BACKLOG = 512
_FLUSH_SECONDS = 5  # for answers that are complete to reach readers that are slow


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address: who calls before the server accepts waits.

    Raises:
        ConfigError: there is no such address here, or another process has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        listening.close()
        raise ConfigError(f"cannot listen at {host}:{port}: {error}; choose another host or port") from None
    return listening


def serve(service: Service, listening: socket.socket, *, stop_seconds: float, say: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C, or until ``service.stopping`` is set.

    From then on new requests get status 503, those under way may finish for ``stop_seconds``, and what is left then
    ends with an error. A second Ctrl-C ends it at once.

    Args:
        service: what is served; its engine works already, and is closed at the end.
        listening: a socket of ``listen``.
        stop_seconds: time that running answers have to finish.
        say: takes a line for people.
    """
    config = uvicorn.Config(
        application(service), log_config=None, access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=_FLUSH_SECONDS, timeout_keep_alive=30, ws="none", http="h11", loop="asyncio",
    )  # fmt: skip
    try:
        _Server(config, service, stop_seconds, say).run(sockets=[listening])
    finally:
        service.stopping = True
        service.engine.close()


class _Server(uvicorn.Server):
    """Uvicorn's server, but that a signal lets answers finish before the socket closes."""

    def __init__(
        self, config: uvicorn.Config, service: Service, stop_seconds: float, say: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._service, self._stop_seconds, self._say = service, stop_seconds, say
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at a second Ctrl-C, stop."""
        if self._service.stopping and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether the end has come."""
        if self._service.stopping and not self.should_exit:
            engine = self._service.engine
            if self._deadline is None:
                active, waiting = engine.load
                self._deadline = time.monotonic() + self._stop_seconds
                self._say(f"stopping: {active + waiting} answers have {self._stop_seconds:g} s to finish")
            if engine.idle or time.monotonic() > self._deadline:
                engine.close()
                self.should_exit = True
        return await super().on_tick(counter)
