"""Asking a teacher over real HTTP: faults, kills, budgets, keys, order."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.rows import Row, Rows
from limbeck.errors import ConfigError, Interrupted, RunError, StorageError
from limbeck.synth.collect import Asking, Collected, _Session, collect, estimate
from limbeck.synth.endpoint import Endpoint, _wait, key_from_environment
from limbeck.synth.ledger import Ledger
from limbeck.synth.prompts import KINDS, Plan, answer_fields
from limbeck.synth.teacher import Answer, Prices, Sampling
from tests.reference.teacher_server import Server, serving

PRICES = Prices(input_price=1.0, output_price=2.0)
QUICK = Asking(backoff=0.01, longest_wait=0.05)
ALL = ("429", "500", "cut", "billed, then cut", "malformed", "prose", "slow")


def plan(count: int = 12, **over: Any) -> Plan:
    return Plan(KINDS["sonnets"], count, **{"sampling": Sampling(max_tokens=64), **over})


def ask(
    server: Server, folder: Path, the: Plan, asking: Asking = QUICK, *, key: str = "", timeout: float = 0.5, **more: Any
) -> Collected:
    with Ledger(folder / "answers.sqlite", json.dumps(the.describe()), honours_keys=asking.honours_keys) as ledger:
        teacher = Endpoint(server.url, "poet", key=key, timeout=timeout)
        return collect(the, teacher, ledger, asking, PRICES, **more)


def rows(folder: Path, the: Plan) -> list[tuple[str, str]]:
    with Ledger(folder / "answers.sqlite", json.dumps(the.describe())) as ledger:
        return [(a.id, a.text) for a in ledger.answers()]


def test_every_fault_at_once_loses_nothing_and_bills_once(tmp_path: Path) -> None:
    the, calm, wild = plan(24), Server(), Server(ALL, honours=True)
    with serving(calm), serving(wild):
        ask(calm, tmp_path / "calm", the, Asking(concurrency=1))
        found = ask(wild, tmp_path / "wild", the, QUICK.model_copy(update={"unsure": "resend", "concurrency": 8}))
    assert found.stopped == "all" and found.totals.done == 24 and found.sent > 24
    assert set(wild.billed.values()) == {1} and len(wild.billed) == 24
    assert rows(tmp_path / "wild", the) == rows(tmp_path / "calm", the)  # whatever the order of the answers
    price = 24 * PRICES.of(10, 20)
    assert found.totals.cost == pytest.approx(price) and found.totals.at_risk == 0
    assert found.totals.prompt_tokens == 240 and found.totals.answer_tokens == 480


def test_retries_share_one_key_and_what_may_be_billed_counts(tmp_path: Path) -> None:
    the, server = plan(6), Server(("billed, then cut",))
    with serving(server):
        found = ask(server, tmp_path, the)
    twice = sum(n - 1 for n in server.billed.values())
    assert twice > 0 and found.totals.done == 6
    reserve = sum(
        (server.billed[the.request(i).key] - 1) * PRICES.of(the.request(i).most_prompt_tokens, 64) for i in range(6)
    )
    assert found.totals.at_risk == pytest.approx(reserve)  # this server does not honour keys: it may have billed


def test_leave_never_sends_again_what_may_be_billed(tmp_path: Path) -> None:
    the, server = plan(10), Server(("billed, then cut", "malformed", "500"))
    leave = QUICK.model_copy(update={"unsure": "leave"})
    with serving(server):
        first, second = ask(server, tmp_path, the, leave), ask(server, tmp_path, the, leave)
    assert max(server.billed.values()) == 1
    assert first.totals.unsure > 0 and first.totals.done + first.totals.unsure == 10 and first.stopped == "failures"
    assert second.sent == 0 and second.totals == first.totals


def test_concurrency_and_rate_are_kept(tmp_path: Path) -> None:
    with serving(Server(seconds=0.2)) as server:
        ask(server, tmp_path / "a", plan(12), Asking(concurrency=3))
        assert 2 <= server.most <= 3
    with serving(Server()) as server:
        ask(server, tmp_path / "b", plan(4), Asking(per_minute=300))
        gaps = [b - a for a, b in zip(server.starts, server.starts[1:], strict=False)]
        assert sum(gaps) >= 3 * 0.2 - 0.15  # the first request waits for its connection too


def test_tokens_a_minute_are_kept_and_what_an_answer_did_not_need_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    the = plan(5)
    most = [the.request(i).most_prompt_tokens + 64 for i in range(5)]

    async def waited(seconds: float) -> None:
        waits.append(seconds)

    async def begin(asking: Asking, answers: list[Answer | None]) -> list[float]:
        """How long each request waits on a clock that stands still, but for the time that the test takes."""
        waits.clear()
        session = _Session(the, None, None, asking, PRICES, lambda: False, lambda done: None)  # type: ignore[arg-type]
        for i, answer in enumerate(answers):
            await session._start(the.request(i))
            if answer is not None:
                session._give_back(the.request(i), answer)
        return list(waits)

    hours = Asking(tokens_per_minute=0.1)  # every token takes ten minutes, beside which the test's own time is nothing
    stated, silent = Answer("", "", 10, 20, "stop"), Answer("", "", None, None, "stop")
    with monkeypatch.context() as patch:
        patch.setattr("limbeck.synth.collect.asyncio.sleep", waited)
        every = asyncio.run(begin(hours, [None, None, None]))
        given = asyncio.run(begin(hours, [stated, silent, None]))
        both = asyncio.run(begin(hours.model_copy(update={"per_minute": 1e-6}), [stated, None]))
        free = asyncio.run(begin(Asking(), [None, None]))
    assert every == pytest.approx([0, 600 * most[0], 600 * (most[0] + most[1])], abs=300)
    assert given == pytest.approx([0, 600 * 30, 600 * (30 + most[1])], abs=300)
    assert both == pytest.approx([0, 60e6], rel=1e-3) and free == []


def test_a_budget_is_never_passed_and_stops_at_the_same_request_whatever_the_concurrency(tmp_path: Path) -> None:
    the = plan(40)
    most = max(PRICES.of(the.request(i).most_prompt_tokens, 64) for i in range(40))
    budget = 9 * PRICES.of(10, 20) + most
    done = []
    for concurrency in (1, 7):
        with serving(Server(seconds=0.05)) as server:
            asking = Asking(concurrency=concurrency, budget=budget)
            found = ask(server, tmp_path / str(concurrency), the, asking, timeout=5)
            assert found.stopped == "budget" and found.totals.spent <= budget
            again = ask(server, tmp_path / str(concurrency), the, asking, timeout=5)
            assert again.sent == 0 and again.stopped == "budget"
            done.append(rows(tmp_path / str(concurrency), the))
    assert done[0] == done[1] and 9 <= len(done[0]) < 40


def test_a_budget_too_small_for_one_request_sends_nothing(tmp_path: Path) -> None:
    with serving(Server()) as server:
        found = ask(server, tmp_path, plan(3), Asking(budget=1e-9))
        assert found.stopped == "budget" and not server.seen


def test_no_usage_is_billed_at_most(tmp_path: Path) -> None:
    server, the = Server(), plan(1)
    server.answer = lambda key, body: json.dumps({"choices": [{"message": {"content": "x"}}]})  # type: ignore[method-assign]
    with serving(server):
        found = ask(server, tmp_path, the)
    assert found.totals.cost == pytest.approx(PRICES.of(the.request(0).most_prompt_tokens, 64))


def test_a_request_that_can_never_be_answered_is_not_sent_again(tmp_path: Path) -> None:
    server = Server()
    server.fault = lambda key, attempt: "400"  # type: ignore[method-assign]
    with serving(server):
        found = ask(server, tmp_path, plan(3))
        assert found.totals.refused == 3 and found.totals.spent == 0
        assert ask(server, tmp_path, plan(3)).sent == 0
    assert set(server.seen.values()) == {1}


def test_attempts_that_run_out_are_left_for_the_next_session(tmp_path: Path) -> None:
    server = Server()
    server.fault = lambda key, attempt: "500" if attempt <= 3 else ""  # type: ignore[method-assign]
    with serving(server):
        found = ask(server, tmp_path, plan(4), QUICK.model_copy(update={"attempts": 2}))
        assert found.stopped == "failures" and found.totals.done == 0 and found.totals.spent == 0
        found = ask(server, tmp_path, plan(4), QUICK.model_copy(update={"attempts": 2}))
        assert found.stopped == "all" and found.totals.done == 4


def test_a_server_that_dies_is_a_sentence_and_the_next_session_goes_on(tmp_path: Path) -> None:
    the = plan(12)
    with serving(Server()) as server:
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        ask(server, tmp_path, plan(5))
    with pytest.raises(RunError, match=r"cannot be reached: .*; 5 of 12 requests are answered and kept"):
        ask(server, tmp_path, the, QUICK.model_copy(update={"attempts": 2}))
    with serving(Server(), port) as again:
        found = ask(again, tmp_path, the)
        assert found.totals.done == 12 and len(again.seen) == 7


def test_a_wrong_key_stops_at_once_and_the_key_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "sk-not-a-real-key-0123456789"
    with serving(Server(key="another")) as server, pytest.raises(RunError, match="refuses the key") as failure:
        ask(server, tmp_path, plan(20), Asking(concurrency=2), key=secret)
    assert len(server.headers) <= 4 and server.headers[0]["Authorization"] == f"Bearer {secret}"
    text = "".join(capfd.readouterr()) + str(failure.value)
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert secret not in text and secret.encode() not in stored and b"(key)" in stored


def test_stop_lets_what_is_on_its_way_come_back(tmp_path: Path) -> None:
    seen: list[int] = []
    with serving(Server(seconds=0.05)) as server:
        with pytest.raises(Interrupted, match="run the same command to go on"):
            ask(server, tmp_path, plan(50), Asking(concurrency=4), stop=lambda: len(seen) >= 5, on_answer=seen.append)
        found = ask(server, tmp_path, plan(50), Asking(concurrency=4))
    assert found.totals.done == 50 and found.lost == 0 and set(server.billed.values()) == {1}


@pytest.mark.parametrize("status", ["404", "400"])
def test_a_model_that_is_not_there_ends_the_session(tmp_path: Path, status: str) -> None:
    server = Server()
    server.fault = lambda key, attempt: status  # type: ignore[method-assign]
    with serving(server):
        if status == "404":
            with pytest.raises(RunError, match="does not serve model 'poet'"):
                ask(server, tmp_path, plan(3), Asking(concurrency=1))
        else:
            assert ask(server, tmp_path, plan(3)).totals.refused == 3


# -- kills ------------------------------------------------------------------------------------------------------------

CHILD = """
import json, sys
from limbeck.synth.collect import Asking, collect
from limbeck.synth.endpoint import Endpoint
from limbeck.synth.ledger import Ledger
from limbeck.synth.prompts import KINDS, Plan
from limbeck.synth.teacher import Prices, Sampling
url, file, unsure = sys.argv[1:]
plan = Plan(KINDS["sonnets"], 60, sampling=Sampling(max_tokens=64))
asking = Asking(concurrency=6, backoff=0.01, longest_wait=0.05, unsure=unsure)
print("ready", flush=True)
from pathlib import Path
with Ledger(Path(file), json.dumps(plan.describe()), honours_keys=asking.honours_keys) as ledger:
    found = collect(plan, Endpoint(url, "poet", timeout=30), ledger, asking, Prices(input_price=1.0, output_price=2.0))
print(found.stopped, flush=True)
"""

KILLS = 6


@pytest.mark.parametrize("unsure", ["retry", "resend"])
def test_killed_at_random_moments_nothing_is_paid_twice(tmp_path: Path, unsure: str) -> None:
    file, the = tmp_path / "answers.sqlite", plan(60)
    random_moment, kills = random.Random(unsure), 0
    with serving(Server(("429", "500", "cut"), honours=unsure == "resend", seconds=0.1)) as server:
        for attempt in range(40):
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, server.url, str(file), unsure], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            if attempt < KILLS:
                wanted = sum(server.seen.values()) + random_moment.randint(1, 8)
                while sum(server.seen.values()) < wanted and child.poll() is None:
                    time.sleep(0.002)
                time.sleep(random_moment.uniform(0, 0.05))
                child.send_signal(signal.SIGKILL)
                kills += 1
            said, _ = child.communicate()
            if child.returncode == 0:
                break
        with Ledger(file, json.dumps(the.describe()), honours_keys=unsure == "resend") as ledger:
            totals, answers = ledger.totals(), ledger.answers()
        assert kills == KILLS and max(server.billed.values()) == 1  # never paid twice
        assert totals.done + totals.unsure == 60 and len({a.id for a in answers}) == totals.done
        if unsure == "resend":
            assert totals.done == 60 and totals.at_risk == 0
        else:
            assert 0 < totals.unsure <= 6 * KILLS  # at most the requests in flight at each kill
        paid = sum(server.billed.values()) * PRICES.of(10, 20)
        assert totals.spent >= paid - 1e-12  # what may have been paid is counted


def test_two_processes_cannot_write_one_store(tmp_path: Path) -> None:
    told = json.dumps(plan().describe())
    with Ledger(tmp_path / "a.sqlite", told), pytest.raises(RunError, match="another process writes"):
        Ledger(tmp_path / "a.sqlite", told)


def test_a_store_of_another_plan_or_no_store_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "a.sqlite", json.dumps(plan().describe())).__exit__()
    with pytest.raises(ConfigError, match="its seed is 0, not 1"):
        Ledger(tmp_path / "a.sqlite", json.dumps(plan(seed=1).describe()))
    (tmp_path / "b.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match="no store of answers"):
        Ledger(tmp_path / "b.sqlite", "{}")
    with pytest.raises(StorageError, match="cannot be"):
        Ledger(tmp_path / "b.sqlite" / "c" / "d.sqlite", "{}")


def test_surrogates_and_raw_answers_are_kept(tmp_path: Path) -> None:
    server = Server(text="half \ud83d a smile, naïve 🌊")
    with serving(server):
        ask(server, tmp_path, plan(1))
    db = sqlite3.connect(tmp_path / "answers.sqlite")
    raw, text = db.execute("SELECT raw, text FROM requests").fetchone()
    db.close()
    assert json.loads(raw)["usage"]["prompt_tokens"] == 10 and text == "half ? a smile, naïve 🌊"


# -- plans ------------------------------------------------------------------------------------------------------------


def test_no_combination_comes_twice_before_all_have_come() -> None:
    small = plan(30, prompt="{a} and {b}", variety={"a": ["1", "2", "3"], "b": ["x", "y"]})
    drawn = [tuple(sorted(small.drawn(i).items())) for i in range(12)]
    assert len(set(drawn[:6])) == len(set(drawn[6:])) == 6
    assert [small.request(i) for i in range(4)] == [small.request(i) for i in range(4)]
    assert len({small.request(i).key for i in range(12)}) == 12  # the same question asked twice is two requests
    assert small.request(3) != plan(30, seed=1, prompt="{a} and {b}", variety=small.variety).request(3)


def test_more_combinations_than_are_listed_are_drawn() -> None:
    many = {name: [f"{name}{i}" for i in range(40)] for name in "abcd"}
    big = plan(5, prompt="{a}{b}{c}{d}", variety=many)
    assert len({big.request(i).messages[-1].content for i in range(50)}) == 50


def test_a_prompt_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown field 'them'.*did you mean 'theme'"):
        plan(prompt="Write of {them}")
    with pytest.raises(ConfigError, match="unknown field 'text'.*give texts for it"):
        Plan(KINDS["restate"], 1)
    with pytest.raises(ConfigError, match="holds no values"):
        plan(variety={"theme": []})
    with pytest.raises(ConfigError, match="cannot be read"):
        plan(prompt="Write {")


def test_given_texts_come_in_turn() -> None:
    texts = Rows.of([Row("a", {"text": "One {odd} text"}), Row("b", {"text": "Two"})], "texts")
    restate = Plan(KINDS["restate"], 3, texts=texts)
    assert [restate.given(i) for i in range(3)] == ["One {odd} text", "Two", "One {odd} text"]
    assert restate.request(0).messages[-1].content.endswith("One {odd} text")
    assert restate.row(1, "r", "Second").fields == {
        "sentence1": "Two", "sentence2": "Second", "prompt": restate.request(1).messages[-1].content, "unread": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "fields", "why"),
    [
        ("sonnets", "Here is a sonnet:\n\n**Title**\nShall I\ncompare", {"text": "Shall I\ncompare"}, ""),
        ("sonnets", "```\nShall I\n```", {"text": "Shall I"}, ""),
        ("sonnets", "  \n", {"text": ""}, "an empty answer"),
        ("qa", 'Sure! {"question": "Q?", "answer": "A."} Enjoy.', {"question": "Q?", "answer": "A."}, ""),
        ("qa", "```json\n{\"question\": \"Q?\", \"answer\": \"A.\"}\n```", {"question": "Q?", "answer": "A."}, ""),
        ("qa", "A balance sheet lists assets.", {"question": "", "answer": ""}, "prose in place of a JSON object"),
        ("qa", '{"question": "Q?"}', {"question": "Q?", "answer": ""}, "no text under 'answer'"),
        ("qa", '{"question": 3, "answer": "A."}', {"question": "", "answer": ""}, "no text under 'question'"),
        ("qa", "[" * 5000 + "{" * 3000, {"question": "", "answer": ""}, "prose"),
        ("instructions", '{"instruction": "I", "input": "", "output": "O"}',
         {"instruction": "I", "input": "", "output": "O"}, ""),
    ],
)  # fmt: skip
def test_answers_are_read_back(kind: str, text: str, fields: dict[str, str], why: str) -> None:
    found, reason = answer_fields(KINDS[kind], text)
    assert found == fields and (why in reason if why else reason == "")


def test_the_estimate_is_an_upper_bound(tmp_path: Path) -> None:
    the = plan(5)
    told = estimate(the, PRICES)
    assert told.requests == 5 and told.answer_tokens == 5 * 64 and told.likely < told.most
    with serving(Server()) as server:
        assert ask(server, tmp_path, the).totals.cost <= told.most


def test_addresses_and_keys_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("ftp://host/v1", "host/v1", "https://"):
        with pytest.raises(ConfigError, match="no address of a server"):
            Endpoint(wrong, "m")
    for leaky in ("https://user:secret@host/v1", "https://host/v1?key=secret"):
        with pytest.raises(ConfigError, match="leave it out") as failure:
            Endpoint(leaky, "m")
        assert "secret" not in str(failure.value)
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_KEY holds no key for https://host/v1"):
        key_from_environment("SOME_KEY", "https://host/v1")
    assert key_from_environment("SOME_KEY", "http://127.0.0.1:80/v1") == ""
    monkeypatch.setenv("SOME_KEY", "clé")
    with pytest.raises(ConfigError, match="characters that no key has"):
        key_from_environment("SOME_KEY", "https://host/v1")


def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with serving(Server(text="x" * (9 << 20))) as server:
        found = ask(server, tmp_path, plan(1), QUICK.model_copy(update={"unsure": "leave"}), timeout=30)
    assert found.totals.unsure == 1 and found.totals.at_risk > 0
    db = sqlite3.connect(tmp_path / "answers.sqlite")
    (failures,) = db.execute("SELECT failures FROM requests").fetchone()
    db.close()
    assert "longer than 8 MB" in failures


def test_an_error_of_ours_leaves_what_was_sent_unknown(tmp_path: Path) -> None:
    """A full disk ends the session; what was on its way is unknown to the next."""

    def full(done: int) -> None:
        raise StorageError("the disk is full")

    with serving(Server(seconds=0.2)) as server:
        with pytest.raises(StorageError, match="full"):
            ask(server, tmp_path, plan(12), Asking(concurrency=4), on_answer=full, timeout=30)
        found = ask(server, tmp_path, plan(12), Asking(concurrency=4), timeout=30)
    assert 0 < found.lost <= 4 and found.totals.done + found.totals.unsure == 12
    assert max(server.billed.values()) == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    assert _wait("2") == 2 and _wait("-3") == 0 and _wait("1e9") == 300 and _wait("soon") == 0 and _wait("nan") == 0
    assert _wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
