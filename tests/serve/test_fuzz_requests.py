"""Any body gets an answer or an error of the client's: nothing that is sent is an error of the server's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.reference.served import in_process, small

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | ANY},
    optional={"content": st.text(max_size=30) | ANY, "name": ANY, "tool_calls": ANY},
)
SHARED: dict[str, Any] = {
    "temperature": st.floats(0, 2) | ANY, "top_p": st.floats(0, 1) | ANY, "top_k": st.integers(-1, 300) | ANY,
    "min_p": st.floats(0, 1) | ANY, "repetition_penalty": st.floats(0, 3) | ANY, "n": st.integers(0, 5) | ANY,
    "max_tokens": st.integers(-1, 12) | ANY, "seed": st.integers() | ANY, "stop": st.text(max_size=3) | ANY,
    "stream": st.booleans() | ANY, "stream_options": st.just({"include_usage": True}) | ANY, "user": ANY,
    "presence_penalty": st.just(0) | ANY, "logit_bias": ANY, "tools": ANY, "best_of": ANY, "surprise": ANY,
}  # fmt: skip
PROMPT = st.text(max_size=40) | st.lists(st.integers(-2, 400), max_size=9) | st.lists(st.text(max_size=5), max_size=4)
COMPLETION = st.fixed_dictionaries(
    {"model": st.just("small")},
    optional={"prompt": PROMPT | ANY, "echo": st.booleans() | ANY, "logprobs": st.integers(-1, 25) | ANY, **SHARED},
)
CHAT = st.fixed_dictionaries(
    {"model": st.just("small") | ANY},
    optional={
        "messages": st.lists(MESSAGE, max_size=4) | ANY, "logprobs": st.booleans() | ANY,
        "top_logprobs": st.integers(-1, 25) | ANY, "max_completion_tokens": st.integers(-1, 9) | ANY, **SHARED,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with in_process(*small(), rows=4) as (client, _):
        yield client


def check(client: TestClient, path: str, raw: bytes) -> int:
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
    elif answer.headers["content-type"] == "application/json":
        assert answer.json()["choices"]
    else:
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
    return answer.status_code


@settings(max_examples=100)
@given(COMPLETION)
def test_any_request_for_completions(client: TestClient, body: Any) -> None:
    check(client, "/v1/completions", json.dumps(body).encode("utf-8", "surrogatepass"))


@settings(max_examples=100)
@given(CHAT)
def test_any_request_for_an_answer(client: TestClient, body: Any) -> None:
    check(client, "/v1/chat/completions", json.dumps(body).encode("utf-8", "surrogatepass"))


@settings(max_examples=50)
@given(st.binary(max_size=60) | ANY.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
def test_any_bytes(client: TestClient, raw: bytes) -> None:
    assert check(client, "/v1/completions", raw) == 400


def test_what_is_drawn_is_sometimes_answered(client: TestClient) -> None:
    drawn = {"model": "small", "prompt": "x", "max_tokens": 3, "stream": True, "logprobs": 3}
    assert check(client, "/v1/completions", json.dumps(drawn).encode()) == 200
