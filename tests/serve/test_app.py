"""The API without a socket: shapes, defaults, errors, and answers that are those of ``generate``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from limbeck.data.batch import Batch
from limbeck.data.chat import Message
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.jobs.generation import chat_ids
from limbeck.serve.service import Service
from tests.reference.served import in_process, small

MODEL, TOKENIZER = small()
CHAT = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[TestClient, Service]]:
    with in_process(MODEL, TOKENIZER) as both:
        yield both


@pytest.fixture
def client(served: tuple[TestClient, Service]) -> TestClient:
    return served[0]


def lone(prompt: str, **options: Any) -> str:
    ((found,),) = generate(MODEL, TOKENIZER, [TOKENIZER.encode(prompt)], Decoding(**options))
    return found.text


def completion(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"model": "small", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chunks(text: str) -> list[dict[str, Any]]:
    """What a stream of events holds; it ends as it should."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def refusal(client: TestClient, status: int, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json={"model": "small", **body})
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_the_model_is_listed(client: TestClient) -> None:
    told = client.get("/v1/models").json()
    (one,) = told["data"]
    assert told["object"] == "list" and (one["id"], one["object"], one["max_model_len"]) == ("small", "model", 128)
    assert client.get("/v1/models/small").json() == one
    missing = client.get("/v1/models/large/one")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_health_tells_the_load(client: TestClient) -> None:
    told = client.get("/health").json()
    assert told == {"status": "ok", "model": "small", "active": 0, "waiting": 0, "rows": 8}


def test_a_greedy_completion_is_that_of_generate(client: TestClient) -> None:
    told = completion(client, prompt="Once upon", max_tokens=9, temperature=0, top_p=0.5)
    (choice,) = told["choices"]
    assert told["object"] == "text_completion" and told["id"].startswith("cmpl-") and told["model"] == "small"
    assert choice["text"] == lone("Once upon", max_new_tokens=9)
    assert (choice["index"], choice["logprobs"]) == (0, None)
    prompt = len(TOKENIZER.encode("Once upon"))
    used = told["usage"]["completion_tokens"]
    assert choice["finish_reason"] == ("length" if used == 9 else "stop")
    assert told["usage"] == {"prompt_tokens": prompt, "completion_tokens": used, "total_tokens": prompt + used}


def test_the_defaults_are_those_of_the_api(client: TestClient) -> None:
    told = completion(client, prompt="x", seed=4)
    assert told["choices"][0]["text"] == lone("x", max_new_tokens=16, temperature=1.0, seed=4)
    first, second = (completion(client, prompt="x")["choices"][0]["text"] for _ in range(2))
    assert first != second  # without a seed each request draws its own


def test_a_seed_gives_one_text_whatever_is_beside_it(client: TestClient) -> None:
    options = {"max_tokens": 24, "temperature": 0.9, "top_k": 50, "seed": 11}
    alone = completion(client, prompt="A hen", **options)["choices"][0]["text"]
    with ThreadPoolExecutor(12) as many:
        others = [many.submit(completion, client, prompt=f"{i} and", max_tokens=30, seed=i) for i in range(8)]
        again = [many.submit(completion, client, prompt="A hen", **options) for _ in range(4)]
        assert {f.result()["choices"][0]["text"] for f in again} == {alone}
        assert all(f.result()["usage"]["completion_tokens"] for f in others)
    assert alone == lone("A hen", max_new_tokens=24, temperature=0.9, top_k=50, seed=11)


def test_negative_seeds_are_seeds(client: TestClient) -> None:
    a, b, c = (completion(client, prompt="x", seed=s)["choices"][0]["text"] for s in (-3, -3, -4))
    assert a == b != c


def test_several_answers_and_several_prompts(client: TestClient) -> None:
    ids = TOKENIZER.encode("x y")
    told = completion(client, prompt=["A hen", "A hen"], n=2, seed=5, max_tokens=8)
    assert [c["index"] for c in told["choices"]] == [0, 1, 2, 3]
    texts = [c["text"] for c in told["choices"]]
    prompt = TOKENIZER.encode("A hen")
    wanted = generate(
        MODEL, TOKENIZER, [prompt, prompt], Decoding(max_new_tokens=8, temperature=1.0, seed=5, samples=2)
    )
    assert texts == [g.text for some in wanted for g in some] and len(set(texts)) == 4
    assert told["usage"]["prompt_tokens"] == 2 * len(prompt)
    one = completion(client, prompt=ids, temperature=0, max_tokens=5)["choices"]
    many = completion(client, prompt=[ids, ids[:1]], temperature=0, max_tokens=5)["choices"]
    assert one[0]["text"] == many[0]["text"] == lone("x y", max_new_tokens=5) and len(many) == 2


def test_a_stop_text_is_cut_off_and_never_streamed(client: TestClient) -> None:
    plain = lone("Once", max_new_tokens=40)
    stop = plain[7:10]
    cut = plain[: plain.index(stop)]
    whole = completion(client, prompt="Once", max_tokens=40, temperature=0, stop=[stop, "never there"])
    assert whole["choices"][0] == {"index": 0, "text": cut, "logprobs": None, "finish_reason": "stop"}
    body = {"model": "small", "prompt": "Once", "max_tokens": 40, "temperature": 0, "stop": stop, "stream": True}
    answer = client.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = chunks(answer.text)
    assert "".join(c["choices"][0]["text"] for c in told) == cut
    assert [c["choices"][0]["finish_reason"] for c in told] == [None] * (len(told) - 1) + ["stop"]
    assert all("usage" not in c for c in told)


def test_a_stream_says_what_the_whole_answer_says(client: TestClient) -> None:
    body = {
        "model": "small",
        "messages": CHAT,
        "seed": 3,
        "n": 2,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.post("/v1/chat/completions", json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    told = chunks(client.post("/v1/chat/completions", json={**body, **options}).text)
    assert told[-1]["choices"] == [] and told[-1]["usage"] == whole["usage"]
    assert all(c["usage"] is None and c["object"] == "chat.completion.chunk" for c in told[:-1])
    assert len({c["id"] for c in told}) == 1
    for choice in whole["choices"]:
        parts = [c["choices"][0] for c in told[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(p["delta"].get("content", "") for p in parts) == choice["message"]["content"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        scores = [one for p in parts if p["logprobs"] for one in p["logprobs"]["content"]]
        assert scores == choice["logprobs"]["content"] and len(scores) > 5


def test_a_conversation_is_laid_out_as_generate_does(client: TestClient) -> None:
    answer = client.post(
        "/v1/chat/completions", json={"model": "small", "messages": CHAT, "temperature": 0, "max_completion_tokens": 9}
    ).json()
    prompt = chat_ids(TOKENIZER, [Message(**m) for m in CHAT], "small")
    ((wanted,),) = generate(MODEL, TOKENIZER, [prompt], Decoding(max_new_tokens=9))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind"}]},
        CHAT[1],
    ]
    again = client.post(
        "/v1/chat/completions", json={"model": "small", "messages": parts, "temperature": 0, "max_tokens": 9}
    ).json()
    assert again["choices"] == answer["choices"]


def test_a_conversation_may_fill_the_context(client: TestClient) -> None:
    body = {"model": "small", "messages": CHAT[1:], "temperature": 0, "stop": "\0\0"}
    told = client.post("/v1/chat/completions", json=body).json()
    used = told["usage"]
    assert used["total_tokens"] == 128 or told["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_of_completions(client: TestClient) -> None:
    told = completion(client, prompt="A hen", max_tokens=3, temperature=0, logprobs=2, echo=True)
    (choice,) = told["choices"]
    scores, ids = choice["logprobs"], TOKENIZER.encode("A hen")
    assert choice["text"] == "A hen" + lone("A hen", max_new_tokens=3)
    assert "".join(scores["tokens"][: len(ids)]) == "A hen"
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    with torch.no_grad():
        wanted = MODEL(Batch.of_ids(torch.tensor([ids])))[0].log_softmax(-1)
    for at in range(1, len(ids)):
        assert scores["token_logprobs"][at] == pytest.approx(float(wanted[at - 1, ids[at]]), abs=2e-5)
        assert max(scores["top_logprobs"][at].values()) == pytest.approx(float(wanted[at - 1].max()), abs=2e-5)
        assert scores["top_logprobs"][at][scores["tokens"][at]] == scores["token_logprobs"][at]
    for at, offset in enumerate(scores["text_offset"][: len(ids)]):
        assert choice["text"][offset:].startswith(scores["tokens"][at])
    assert len(scores["tokens"]) == len(ids) + 3


def test_a_prompt_alone_is_scored(client: TestClient) -> None:
    """As lm-evaluation-harness asks, but for its one token more."""
    told = completion(client, prompt=[TOKENIZER.encode("A hen"), [5]], max_tokens=0, logprobs=1, echo=True)
    assert [c["text"] for c in told["choices"]] == ["A hen", TOKENIZER.decode([5])]
    assert [len(c["logprobs"]["tokens"]) for c in told["choices"]] == [len(TOKENIZER.encode("A hen")), 1]
    assert told["usage"]["completion_tokens"] == 0
    silent = completion(client, prompt="A hen", max_tokens=0, logprobs=0)["choices"][0]
    assert silent["text"] == "" and silent["logprobs"] == {
        "tokens": [], "token_logprobs": [], "top_logprobs": None, "text_offset": []
    }  # fmt: skip


def test_log_probabilities_of_a_conversation_have_bytes(client: TestClient) -> None:
    body = {"model": "small", "messages": CHAT, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    scores = choice["logprobs"]["content"]
    spelled = b"".join(bytes(one["bytes"]) for one in scores).decode("utf-8", "replace")
    assert spelled.removesuffix("<|endoftext|>") == choice["message"]["content"]
    for one in scores:
        assert len(one["top_logprobs"]) == 3 and one["logprob"] == one["top_logprobs"][0]["logprob"]
        assert [t["logprob"] for t in one["top_logprobs"]] == sorted(t["logprob"] for t in one["top_logprobs"])[::-1]


@pytest.mark.parametrize(
    ("body", "status", "param", "part"),
    [
        ({"model": "gpt-9", "prompt": "x"}, 404, "model", "ask for 'small'"),
        ({"prompt": "x", "temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"prompt": "x", "temperature": "hot"}, 400, "temperature", "valid number"),
        ({"prompt": "x", "top_p": 0}, 400, "top_p", "greater than 0"),
        ({"prompt": "x", "n": 0}, 400, "n", "greater than or equal to 1"),
        ({"prompt": "x", "n": 100}, 400, "n", "100 answers at once"),
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "x", "max_tokens": True}, 400, "max_tokens", "valid integer"),
        ({"prompt": "x", "logprobs": 50}, 400, "logprobs", "less than or equal to 20"),
        ({"prompt": "x", "stop": [""]}, 400, "stop", "1 to 1000 characters"),
        ({"prompt": "x", "stop": list("abcdefghijklmnopq")}, 400, "stop", "at most 16"),
        ({"prompt": "x", "presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        ({"prompt": "x", "best_of": 3}, 400, "best_of", "must equal 'n'"),
        ({"prompt": "x", "tempo": 1}, 400, "tempo", "unrecognized request argument"),
        ({}, 400, "prompt", "you must provide 'prompt'"),
        ({"prompt": []}, 400, "prompt", "holds no prompt"),
        ({"prompt": [[]]}, 400, "prompt", "empty"),
        ({"prompt": [4000]}, 400, "prompt", "none of the model's 288"),
        ({"prompt": [-1]}, 400, "prompt", "is wrong"),
        ({"prompt": ["x", 1]}, 400, "prompt", "is wrong"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_wrong_requests(client: TestClient, body: dict[str, Any], status: int, param: str, part: str) -> None:
    error = refusal(client, status, **body)
    assert error["param"] == param and part in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "is wrong"),
        ({"messages": [{"role": "user"}]}, "messages", "has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages", "is wrong"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages", "tool_calls"),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"messages": CHAT, "top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"messages": CHAT, "max_tokens": 4, "prompt": "x"}, "prompt", "unrecognized"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_wrong_conversations(client: TestClient, body: dict[str, Any], param: str, part: str) -> None:
    error = refusal(client, 400, "/v1/chat/completions", **body)
    assert error["param"] == param and part in error["message"]


def test_fields_that_ask_for_nothing_are_no_errors(client: TestClient) -> None:
    neutral = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "suffix": None,
        "best_of": 1,
    }
    assert completion(client, prompt="x", max_tokens=1, **neutral)["choices"]


def test_a_context_that_overflows_is_named(client: TestClient) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": [5] * 120, "max_tokens": 9}),
        ("/v1/completions", {"prompt": [5] * 128}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 200}]}),
    ):
        error = refusal(client, 400, path, **body)
        assert error["code"] == "context_length_exceeded" and "the context holds 128 tokens" in error["message"]
    completion(client, prompt=[5] * 120, max_tokens=8)  # exactly full
    completion(client, prompt=[5] * 127)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"{", "no JSON"), (b"\xff\xfe", "no JSON"), (b"[" * 50_000, "no JSON"), (b"[1]", "must be a JSON object"),
        (b'{"model": "small", "prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"model": "small", "prompt": "x", "temperature": 1e999}', "is wrong"),
        (b'{"model": "small", "prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"model": "small", "prompt": [1' + b"0" * 5000 + b"]}", "no JSON"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(client: TestClient, raw: bytes, part: str) -> None:
    answer = client.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and part in answer.json()["error"]["message"]


def test_other_addresses_and_methods(client: TestClient) -> None:
    for answer, status in ((client.get("/v2/x"), 404), (client.get("/v1/completions"), 405)):
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_must_say_that_it_is_json_and_be_small(served: tuple[TestClient, Service]) -> None:
    client, service = served
    assert client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    answer = client.post("/v1/completions", json={"model": "small", "prompt": "x" * service.body_bytes})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces() -> Iterator[bytes]:  # without a length in its header
        for _ in range(20):
            yield b"x" * (service.body_bytes // 16)

    chunked = client.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413


def test_a_key_is_asked_for_everywhere_but_health() -> None:
    with in_process(MODEL, TOKENIZER, rows=1, key="correct-horse") as (client, service):
        assert "correct-horse" not in repr(service)
        for sent in ({}, {"Authorization": "Bearer wrong-horse"}, {"Authorization": "Basic correct-horse"}):
            answer = client.get("/v1/models", headers=sent)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert "horse" not in answer.text
        assert client.get("/health").status_code == 200
        good = {"Authorization": "Bearer correct-horse"}
        assert client.get("/v1/models", headers=good).status_code == 200


def test_a_page_of_another_name_cannot_call_a_server_without_key() -> None:
    with in_process(MODEL, TOKENIZER, rows=1, hosts=frozenset({"127.0.0.1", "::1"})) as (client, _):
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Host": "[::1]:80"}).status_code == 200
        answer = client.get("/v1/models", headers={"Host": "evil.example:8000"})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_host"


def test_a_full_queue_says_when_to_come_back() -> None:
    with in_process(MODEL, TOKENIZER, rows=1, queue=0) as (client, service):
        busy = threading.Thread(target=lambda: completion(client, prompt="x", max_tokens=120, temperature=0))
        hold = threading.Event()
        true = service.engine.pool.step

        def slow(tokens: Any) -> Any:
            hold.wait(30)
            return true(tokens)

        service.engine.pool.step = slow  # type: ignore[method-assign]
        busy.start()
        while service.engine.idle:
            time.sleep(0.01)
        answer = client.post("/v1/completions", json={"model": "small", "prompt": "y"})
        hold.set()
        busy.join()
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert "all 1 rows of the cache pool are taken" in error["message"]
        completion(client, prompt="y", max_tokens=2)


def test_a_server_that_stops_takes_nothing_new() -> None:
    with in_process(MODEL, TOKENIZER, rows=1) as (client, service):
        service.stopping = True
        answer = client.post("/v1/completions", json={"model": "small", "prompt": "x"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "server_stopping"
        assert client.get("/health").status_code == 503


def test_answers_that_a_stop_cuts_short_are_errors() -> None:
    with in_process(MODEL, TOKENIZER, rows=2) as (client, service):
        true = service.engine.pool.step
        begun = threading.Event()

        def slow(tokens: Any) -> Any:
            begun.set()
            time.sleep(0.01)
            return true(tokens)

        service.engine.pool.step = slow  # type: ignore[method-assign]
        body = {"model": "small", "prompt": "x", "max_tokens": 120, "temperature": 0, "stop": "\0\0"}
        with ThreadPoolExecutor(2) as two:
            whole = two.submit(client.post, "/v1/completions", json=body)
            stream = two.submit(client.post, "/v1/completions", json={**body, "stream": True})
            begun.wait(30)
            while service.engine.load[0] < 2:
                time.sleep(0.01)
            service.engine.close()
        assert whole.result().status_code == 503
        last = stream.result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"


def test_an_error_of_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_process(MODEL, TOKENIZER, rows=1) as (client, service):
        monkeypatch.setattr(service.engine.pool, "join", lambda prompt: 1 / 0)
        error = refusal(client, 500, prompt="x")
        assert error["type"] == "server_error" and "ZeroDivisionError" in error["message"]


def test_a_model_without_a_template_has_no_conversations() -> None:
    model, tokenizer = small()
    plain = tokenizer.with_chat_template("")
    plain.chat_template = None
    with in_process(model, plain, rows=1) as (client, _):
        error = refusal(client, 400, "/v1/chat/completions", messages=CHAT)
        assert "no chat template" in error["message"]


def test_a_template_that_refuses_is_the_clients_error() -> None:
    model, tokenizer = small()
    with in_process(model, tokenizer.with_chat_template("{{ raise_exception('no') }}{{ eos_token }}"), rows=1) as (
        client,
        _,
    ):
        assert "refuses a conversation" in refusal(client, 400, "/v1/chat/completions", messages=CHAT)["message"]
