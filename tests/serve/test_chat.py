"""``limbeck chat``: turns, commands, Ctrl-C, long conversations, with a model and with a server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.chat import TEMPLATES, Message
from limbeck.data.readers import read
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, LimbeckError, RunError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.generation import chat_ids
from limbeck.serve.chat import LocalAnswerer, RemoteAnswerer
from limbeck.serve.client import ChatServer
from limbeck.serve.conversation import Conversation, TooLongError
from tests.reference.commands import Limbeck, refused
from tests.reference.served import in_process, small
from tests.reference.small_model import decoder, saved
from tests.reference.small_tokenizer import byte_level


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_bundle(decoder(context=160), byte_level().with_chat_template(TEMPLATES["turns"]), folder)
    return folder


class Scripted:
    """An answerer that says what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked, self.closed = list(answers), [], 0
        self.asked: list[list[Message]]

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        self.asked.append(list(messages))
        said = self.answers.pop(0)
        try:
            for piece in said if isinstance(said, list) else [said]:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def talk(answerer: Any, *lines: Any, system: str = "") -> tuple[Conversation, str, list[str]]:
    """The conversation after these lines, what was written, and what was noted."""
    waiting, out, notes = list(lines), io.StringIO(), []

    def line() -> str:
        if not waiting:
            raise EOFError
        one = waiting.pop(0)
        if isinstance(one, BaseException):
            raise one
        return str(one)

    conversation = Conversation(answerer, out, notes.append, line, system)
    conversation.run()
    return conversation, out.getvalue(), notes


def roles(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


def test_turns_are_remembered() -> None:
    answerer = Scripted(["Hel", "lo"], "Well")
    conversation, out, notes = talk(answerer, "Hi", "", "How are you?", system="Be kind")
    assert out == "Hello\nWell\n" and notes == []
    wanted = [
        ("system", "Be kind"),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "How are you?"),
        ("assistant", "Well"),
    ]
    assert roles(conversation) == wanted
    assert [len(m) for m in answerer.asked] == [2, 4]


def test_commands(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    answerer = Scripted("a", "b", "c")
    conversation, _, notes = talk(
        answerer, "one", "/reset", "two", "/system Be short", "/help", "/nothing", "/save", f"/save {file}",
        f"/save {file}", f"/save {tmp_path}/none/x", "three", "/exit", "never read",
    )  # fmt: skip
    assert [m.content for m in answerer.asked[2]] == ["Be short", "two", "b", "three"]
    assert notes[0] == "forgotten" and notes[1] == "the system says that from now on" and "/exit" in notes[2]
    assert notes[3].startswith("there is no /nothing") and notes[4].startswith("say where")
    assert notes[5] == f"2 turns are in {file}" and notes[6].endswith("exists: choose another name") and len(notes) == 8
    (row,) = read(str(file))
    assert [m["role"] for m in row.fields["messages"]] == ["system", "user", "assistant"]
    assert len(conversation.turns) == 4


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    answerer = Scripted(["It is ", KeyboardInterrupt()], "b")
    conversation, out, notes = talk(answerer, "one", KeyboardInterrupt(), "two")
    assert out == "It is \nb\n" and notes == ["stopped", "nothing is being answered: /exit leaves"]
    assert roles(conversation)[:2] == [("user", "one"), ("assistant", "It is ")] and answerer.closed == 2


def test_a_turn_that_fails_is_taken_back() -> None:
    answerer = Scripted(["half", RunError("the server broke off")], "b")
    conversation, out, notes = talk(answerer, "one", "two")
    assert out == "half\nb\n" and notes == ["the server broke off"]
    assert roles(conversation) == [("user", "two"), ("assistant", "b")]


def test_a_long_conversation_forgets_its_oldest_turns() -> None:
    answerer = Scripted("a", "b", [TooLongError("too long")], [TooLongError("too long")], "c", [TooLongError("one")])
    conversation, _, notes = talk(answerer, "1", "2", "3", "/reset", "4")
    assert [m.content for m in answerer.asked[4]] == ["3"] and "oldest question" in notes[0]
    assert notes[-1] == "one" and conversation.turns == []


def test_a_model_answers_what_generate_answers(model: Path) -> None:
    bundle = load_bundle(str(model))
    for decoding in (Decoding(max_new_tokens=9), Decoding(max_new_tokens=9, temperature=0.9, seed=4)):
        turns = [Message("system", "Be kind"), Message("user", "Who?")]
        ((wanted,),) = generate(bundle.model, bundle.tokenizer, [chat_ids(bundle.tokenizer, turns, "m")], decoding)
        assert "".join(LocalAnswerer(bundle, "m", decoding).answer(turns)) == wanted.text


def test_a_model_that_cannot_talk_is_refused(tmp_path: Path, model: Path) -> None:
    bare = load_bundle(str(saved(tmp_path / "bare")))
    with pytest.raises(ConfigError, match="bare has no chat template"):
        LocalAnswerer(bare, "bare", Decoding())
    given = LocalAnswerer(bare, "bare", Decoding(max_new_tokens=4), "turns")
    assert isinstance("".join(given.answer([Message("user", "Hi")])), str)
    with pytest.raises(TooLongError, match="more than the model's context of 160"):
        list(LocalAnswerer(load_bundle(str(model)), "m", Decoding()).answer([Message("user", "word " * 40)]))


def test_the_command_reads_lines_from_a_pipe(
    model: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\nAnd I?\n"))
    said = limbeck("chat", model, "--max-new-tokens", 8, "--system", "Be kind", "--out", tmp_path / "out")
    assert said.code == 0 and said.out.count("\n") >= 2 and "/reset forgets" in said.err
    turns = json.loads((tmp_path / "out" / "chat.json").read_text())["messages"]
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user", "assistant"]


def test_a_server_is_asked_with_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(max_new_tokens=6, temperature=0.5, top_k=7, seed=3, stop=("x",))
    told = RemoteAnswerer.__new__(RemoteAnswerer)
    RemoteAnswerer.__init__(told, None, decoding)  # type: ignore[arg-type]
    assert told._options == {"max_tokens": 6, "temperature": 0.5, "top_k": 7, "seed": 3, "stop": ["x"]}


def remote(client: Any, key: str = "") -> ChatServer:
    """A client of ours whose requests go to an application in this process."""
    server = ChatServer.__new__(ChatServer)
    server.url, server._key, server._client = "http://127.0.0.1:8000/v1", key, client
    server.model = server._first_model()
    return server


def test_a_server_in_this_process_is_talked_with() -> None:
    with in_process(*small()) as (client, _):
        server = remote(client)
        assert server.model == "small"
        pieces = list(server.answer([Message("user", "Hi")], {"max_tokens": 6, "temperature": 0}))
        whole = client.post(
            "/v1/chat/completions",
            json={"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0},
        ).json()
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]
        with pytest.raises(TooLongError, match="status 400"):
            list(server.answer([Message("user", "word " * 99)], {"max_tokens": 6}))
        with pytest.raises(RunError, match="refuses .status 400.: 'tempo'|unrecognized"):
            list(server.answer([Message("user", "Hi")], {"tempo": 6}))
        server.close()


def test_a_wrong_key_is_told_without_it() -> None:
    with in_process(*small(), key="correct-horse") as (client, _):
        with pytest.raises(RunError, match="status 401") as caught:
            remote(client, key="wrong-horse")
        assert "horse" not in str(caught.value)


def test_servers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    def server(respond: Any) -> Any:
        return httpx2.Client(transport=httpx2.MockTransport(respond))

    with pytest.raises(ConfigError, match="lists no model"):
        remote(server(lambda request: httpx2.Response(200, json={"data": []})))
    models = {"data": [{"id": "m"}]}
    for text, part in (("data: {}\n\n", "sends what is no chat completion"),
                       ('data: {"error": {"message": "tired"}}\n\n', "broke off: tired")):  # fmt: skip

        def respond(request: Any, text: str = text) -> Any:
            return httpx2.Response(200, json=models) if request.method == "GET" else httpx2.Response(200, text=text)

        with pytest.raises(LimbeckError, match=part):
            list(remote(server(respond)).answer([Message("user", "Hi")], {}))

    def down(request: Any) -> Any:
        raise httpx2.ConnectError("refused")

    with pytest.raises(RunError, match="cannot be reached: refused"):
        remote(server(down))
    with pytest.raises(RunError, match="status 502"):
        remote(server(lambda request: httpx2.Response(502, text="bad gateway")))


def test_bad_input_is_one_sentence(limbeck: Limbeck, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(limbeck("chat"), "name a model, or the address of a server with 'url'")
    refused(limbeck("chat", model, "--beams", 2), "one answer a turn")
    refused(limbeck("chat", "--url", "http://127.0.0.1:1/v1", "--chat-template", "bare"), "its own adapter")
    refused(limbeck("chat", "--url", "ftp://x"), "no address of a server")
    monkeypatch.setenv("LIMBECK_API_KEY", "correct-horse")
    refused(limbeck("chat", "--url", "http://far.example/v1"), "is not encrypted")
    monkeypatch.setenv("LIMBECK_API_KEY", "n\u00f6")
    refused(limbeck("chat", "--url", "http://127.0.0.1:1/v1"), "no key has")
