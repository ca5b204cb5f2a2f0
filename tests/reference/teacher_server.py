"""A real HTTP server on loopback that answers chat completions, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Server", "serving"]


@dataclass
class Server:
    """What the server does, and what it saw.

    Attributes:
        faults: names of faults, of which each attempt draws one (or none) by its key and number.
        honours: an idempotency key is billed once, and later attempts get the first answer.
        seconds: an answer takes at most so long, drawn.
        key: the only bearer accepted; empty: all.
        billed: idempotency key -> how often an answer was billed.
        seen: key -> attempts.
        most: most requests at once.
    """

    faults: tuple[str, ...] = ()
    honours: bool = False
    seconds: float = 0.0
    key: str = ""
    text: str = ""
    billed: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def answer(self, key: str, body: dict[str, Any]) -> str:
        """The answer: a function of the request's body."""
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
        said = self.text or f"answer {digest}"
        usage = {"prompt_tokens": 10, "completion_tokens": 20}
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return json.dumps({"choices": [choice], "usage": usage})

    def fault(self, key: str, attempt: int) -> str:
        """Fault of this attempt: the first two attempts may fail, the third works."""
        if not self.faults or attempt > 2:
            return ""
        return random.Random(f"{key}:{attempt}").choice([*self.faults, ""])


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:  # noqa: N802
            with server.lock:
                server.now += 1
                server.most = max(server.most, server.now)
                server.starts.append(time.monotonic())
                server.headers.append(dict(self.headers))
            try:
                self._serve()
            finally:
                with server.lock:
                    server.now -= 1

        def _send(self, status: int, text: str, **headers: str) -> None:
            raw = text.encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _serve(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers["idempotency-key"]
            sent = (self.headers["authorization"] or "").removeprefix("Bearer ")
            if server.key and sent != server.key:
                self._send(401, json.dumps({"error": {"message": f"Incorrect API key provided: {sent}"}}))
                return
            with server.lock:
                server.seen[key] += 1
                fault = server.fault(key, server.seen[key])
            time.sleep(random.Random(key).random() * server.seconds)
            if fault == "429":
                self._send(429, '{"error": {"message": "slow down"}}', retry_after="0.02")
            elif fault in ("400", "404", "500"):
                self._send(int(fault), '{"error": {"message": "something is wrong"}}')
            elif fault == "cut":
                self._cut()
            else:
                self._answered(key, body, fault)

        def _answered(self, key: str, body: dict[str, Any], fault: str) -> None:
            with server.lock:
                if not (server.honours and server.billed[key]):
                    server.billed[key] += 1
            whole = server.answer(key, body)
            if fault == "billed, then cut":
                self._cut()
            elif fault == "malformed":
                self._send(200, whole[:-7])
            elif fault == "prose":
                self._send(200, "<html>Bad gateway</html>")
            elif fault == "slow":
                time.sleep(1.5)
                self._send(200, whole)
            else:
                self._send(200, whole)

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that went away is no failure."""


@contextmanager
def serving(server: Server, port: int = 0) -> Iterator[Server]:
    """Serve until the end of the block; then the port is closed."""
    http = _Quiet(("127.0.0.1", port), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
