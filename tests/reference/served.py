"""A small model behind the API: in this process, or as a command with a real socket."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from limbeck.data.chat import TEMPLATES, ChatTemplate
from limbeck.data.tokenizer import Tokenizer
from limbeck.model.decoder import Decoder
from limbeck.serve.app import application
from limbeck.serve.engine import Engine
from limbeck.serve.service import Service
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level

__all__ = ["command", "in_process", "small", "stop"]


def small(**over: Any) -> tuple[Decoder, Tokenizer]:
    """A model of 128 tokens' context, and its tokenizer with a chat template."""
    return decoder(**{"context": 128, **over}), byte_level().with_chat_template(TEMPLATES["turns"])


@contextmanager
def in_process(
    model: Decoder, tokenizer: Tokenizer, *, rows: int = 8, queue: int = 64, draft: Decoder | None = None, **over: Any
) -> Iterator[tuple[TestClient, Service]]:
    """A client whose requests reach the application without a socket."""
    engine = Engine(model, tokenizer, rows=rows, queue=queue, draft=draft)
    own = tokenizer.chat_template
    template = None if own is None else ChatTemplate(own, tokenizer)
    service = Service(engine, tokenizer, "small", template, **over)
    engine.start()
    try:
        with TestClient(application(service), base_url="http://127.0.0.1:8000") as client:
            yield client, service
    finally:
        engine.close()


@contextmanager
def command(
    model: Path, *flags: object, env: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``limbeck serve`` in a process of its own, at a free port; its address and the process."""
    argv = [sys.executable, "-m", "limbeck", "serve", str(model), "--port", "0", *map(str, flags)]
    process = subprocess.Popen(
        argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            found = re.search(r"(http://\S+/v1)", line)
            if found:
                yield found[1], process
                break
        else:
            raise AssertionError("the server did not start: " + "".join(said))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Send SIGTERM; exit code, stdout and stderr."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
