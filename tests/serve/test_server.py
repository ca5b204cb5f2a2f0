"""The command with a real socket: curl, streams, disconnects, signals, keys, a draft, and a teacher for synthesize."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from limbeck.data.chat import TEMPLATES
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.formats.load import load_bundle, save_bundle
from tests.reference.commands import Limbeck, refused
from tests.reference.served import command, stop
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level

ENDLESS = {"temperature": 0, "stop": "\0\0", "max_tokens": 1900}


def write(folder: Path, **over: Any) -> Path:
    """A small model that never ends by itself, with a chat template."""
    model = decoder(**{"context": 2048, "hidden_size": 32, **over})
    save_bundle(model, byte_level().with_chat_template(TEMPLATES["turns"]), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("served") / "hen")


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with command(model, "--queue", 40) as (url, _):
        yield url


def load(address: str) -> tuple[int, int]:
    told = httpx2.get(address.removesuffix("/v1") + "/health").json()
    return told["active"], told["waiting"]


def until(what: Any, seconds: float = 30.0) -> None:
    """Wait until ``what()`` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_curl_unchanged(address: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    body = {"model": "hen", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5, "stream": True}
    argv = [
        "curl",
        "-sSN",
        f"{address}/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    ]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.endswith("data: [DONE]\n\n") and '"object": "chat.completion.chunk"' in said


def test_what_it_serves_is_what_generate_writes(address: str, model: Path) -> None:
    bundle = load_bundle(str(model))
    prompts = [f"{i} hens" for i in range(10)]
    decoding = Decoding(max_new_tokens=20, temperature=0.8, seed=2)

    def ask(prompt: str) -> str:
        body = {"model": "hen", "prompt": prompt, "max_tokens": 20, "temperature": 0.8, "seed": 2}
        answer = httpx2.post(f"{address}/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    with ThreadPoolExecutor(10) as many:
        found = list(many.map(ask, prompts))
    ids = [bundle.tokenizer.encode(p) for p in prompts]
    assert found == [g.text for (g,) in generate(bundle.model, bundle.tokenizer, ids, decoding)]


def test_a_disconnect_frees_the_rows(address: str) -> None:
    for stream in (True, False):
        body = {"model": "hen", "prompt": "x", "n": 3, "stream": stream, **ENDLESS}
        raw = json.dumps(body).encode()
        host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            until(lambda: load(address)[0] >= 1)
        until(lambda: load(address) == (0, 0))


def test_a_slow_reader_holds_no_row(address: str) -> None:
    body = {"model": "hen", "prompt": "x", "stream": True, "logprobs": 5, **ENDLESS}
    with httpx2.stream("POST", f"{address}/completions", json=body, timeout=60) as answer:
        until(lambda: load(address) == (0, 0))  # nothing of it has been read
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_synthesize_is_taught_by_it(address: str, limbeck: Limbeck, tmp_path: Path) -> None:
    flags = ("--count", 6, "--concurrency", 3, "--max-tokens", 12, "--json")
    said = limbeck(
        "synthesize", "instructions", "--endpoint", address, "--model", "hen", "--out", tmp_path / "set", *flags
    )
    assert said.code == 0, said.err
    asking = json.loads(said.out)["asking"]
    assert asking["done"] == 6 and asking["answer_tokens"] > 0 and asking["prompt_tokens"] > 0


def test_chat_over_the_address(address: str, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n/exit\n"))
    said = limbeck("chat", "--url", address, "--max-new-tokens", 6, "--json")
    turns = json.loads(said.out)["messages"]
    assert said.code == 0 and [t["role"] for t in turns] == ["user", "assistant"] and turns[1]["content"]


@pytest.mark.slow
def test_sigterm_lets_answers_finish_and_refuses_new_ones(model: Path, tmp_path: Path) -> None:
    with command(model, "--json", "--name", "hen", "--out", tmp_path / "out") as (url, process):
        body = {"model": "hen", "prompt": "x", **ENDLESS, "n": 4}
        with ThreadPoolExecutor(1) as one, httpx2.Client() as kept:
            kept.get(f"{url}/models")
            running = one.submit(httpx2.post, f"{url}/completions", json=body, timeout=60)
            until(lambda: load(url)[0] == 4)
            process.send_signal(signal.SIGTERM)
            until(lambda: kept.get(url.removesuffix("/v1") + "/health").status_code == 503)
            late = kept.post(f"{url}/completions", json={"model": "hen", "prompt": "y"})
            assert late.status_code == 503 and late.headers["retry-after"]
            answer = running.result()
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4 * 1900
        out, err = process.communicate(timeout=60)
    told = json.loads(out)
    assert process.returncode == 0 and told["answers"] == 4 and told["tokens"] == 4 * 1900
    assert json.loads((tmp_path / "out" / "serve.json").read_text())["name"] == "hen"
    assert "stopping: 4 answers" in err and "Traceback" not in err


@pytest.mark.slow
def test_what_does_not_finish_in_time_is_an_error(model: Path) -> None:
    with command(model, "--stop-seconds", 0, "--rows", 1) as (url, process):
        body = {"model": "hen", "prompt": "x", **ENDLESS, "n": 30}
        with ThreadPoolExecutor(1) as one:
            running = one.submit(httpx2.post, f"{url}/completions", json=body, timeout=60)
            until(lambda: load(url)[0] == 1)
            code, _, _ = stop(process)
            assert running.result().status_code == 503 and code == 0


@pytest.mark.slow
def test_a_key_is_needed_beyond_this_machine_and_never_told(
    model: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LIMBECK_API_KEY", raising=False)
    refused(limbeck("serve", model, "--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines: set a key")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "short").write_text("abc")
    refused(limbeck("serve", model, "--api-key-file", tmp_path / "empty"), "is empty")
    refused(limbeck("serve", model, "--api-key-file", tmp_path / "short"), "8 or more ASCII characters")
    refused(limbeck("serve", model, "--api-key-file", tmp_path / "none"), "cannot be read")
    with command(model, "--host", "0.0.0.0", "--json", env={"LIMBECK_API_KEY": "correct-horse"}) as (url, process):
        near = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(f"{near}/models").status_code == 401
        good = {"Authorization": "Bearer correct-horse"}
        assert httpx2.get(f"{near}/models", headers=good).status_code == 200
        code, out, err = stop(process)
    assert code == 0 and "horse" not in out + err and "with a key" not in out


@pytest.mark.slow
def test_a_draft_for_one_greedy_request(model: Path, tmp_path: Path) -> None:
    draft = write(tmp_path / "draft", layers=1)
    with command(model, "--draft", draft, "--json") as (url, process):
        body = {"model": "hen", "prompt": "x", "max_tokens": 30, "temperature": 0}
        text = httpx2.post(f"{url}/completions", json=body, timeout=60).json()["choices"][0]["text"]
        _, out, _ = stop(process)
    bundle = load_bundle(str(model))
    ids = bundle.tokenizer.encode("x")
    ((wanted,),) = generate(bundle.model, bundle.tokenizer, [ids], Decoding(max_new_tokens=30))
    assert text == wanted.text and json.loads(out)["speculation"]["rounds"] > 0


def test_what_cannot_be_served_is_one_sentence(model: Path, limbeck: Limbeck, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(limbeck("serve", model, "--port", taken.getsockname()[1]), "cannot listen at 127.0.0.1")
    refused(limbeck("serve", model, "--port", 0, "--context", 4000), "context 4000 is more than the model's 2048")
    refused(limbeck("serve", model, "--port", 0, "--chat-template", "turn"), "names no chat template")
    refused(limbeck("serve", tmp_path / "none", "--port", 0), "does not exist")


def test_without_the_extra_one_sentence_names_it(
    model: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith(("limbeck.serve.server", "limbeck.serve.app"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused(limbeck("serve", model), 'pip install "limbeck[serve]"')


def test_many_clients_lose_nothing(address: str) -> None:
    """32 clients at once, each several times."""
    lost: list[str] = []

    def ask(number: int) -> None:
        for turn in range(3):
            body = {"model": "hen", "prompt": f"{number} {turn}", "max_tokens": 4 + number, "temperature": 0}
            answer = httpx2.post(f"{address}/completions", json=body, timeout=120)
            if answer.status_code != 200:
                lost.append(answer.text)

    clients = [threading.Thread(target=ask, args=(n,)) for n in range(32)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert lost == [] and load(address) == (0, 0)
