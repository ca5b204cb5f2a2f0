"""Chat templates on the command line: shown, saved with a model, and used to generate."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.config import build
from limbeck.data.chat import TEMPLATES, ChatTemplate, Message
from limbeck.errors import ConfigError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs import prompting as module
from limbeck.jobs.recipe import Display
from limbeck.jobs.reports.chat import EXAMPLE
from limbeck.verbs.table import recipe
from tests.reference.small_model import decoder, saved
from tests.reference.small_tokenizer import byte_level
from tests.reference.tiny_runs import run


@pytest.fixture
def chatty(tmp_path: Path) -> str:
    save_bundle(decoder(context=64), byte_level().with_chat_template(TEMPLATES["turns"]), tmp_path / "chatty")
    return str(tmp_path / "chatty")


def test_info_shows_an_example_with_what_is_learned(chatty: str) -> None:
    report = build(recipe("info"), {"model": chatty, "chat": "auto"}).run(Display.silent())
    told = report.values["chat"]
    assert told["template"] == TEMPLATES["turns"] == report.values["model"]["tokenizer"]["chat_template"]
    assert told["learned"] == [" A cat.<|endoftext|>", " A dog.<|endoftext|>"]
    assert told["text"].startswith(told["prompt"]) and len(told["ids"]) == len(told["targets"])
    console = Console(width=160, record=True, file=StringIO())
    report.show(console)
    shown = console.export_text()
    assert "[ A cat.<|endoftext|>]" in shown and "User: Which animal purrs?" in shown


def test_info_tries_another_template_and_refuses_a_bad_one(chatty: str) -> None:
    assert run("info", model=chatty, chat="bare")["chat"]["learned"] == ["A cat.<|endoftext|>", "A dog.<|endoftext|>"]
    with pytest.raises(ConfigError, match="never learn to stop"):
        run("info", model=chatty, chat="{% for m in messages %}{{ m.content }}{% endfor %}")


def test_generate_lays_a_prompt_out_as_the_template_says(chatty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    plain = module.generate

    def spy(model: object, tokenizer: object, prompts: list[list[int]], *rest: object, **options: object) -> object:
        asked.extend(prompts)
        return plain(model, tokenizer, prompts, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", spy)
    short = {"decoding": {"max_new_tokens": 3}}
    run("generate", model=chatty, prompt="the cat?", chat=True, system="be", **short)
    run("generate", model=chatty, prompt="the cat?", **short)
    template = ChatTemplate.named("auto", load_bundle(chatty).tokenizer)
    assert asked[0] == template.prompt_ids([Message("system", "be"), Message("user", "the cat?")])
    assert asked[1] == byte_level().encode("the cat?")


def test_what_generate_refuses(tmp_path: Path) -> None:
    plain = str(saved(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="has no chat template"):
        run("generate", model=plain, prompt="a", chat=True)
    with pytest.raises(ConfigError, match="system needs chat"):
        run("generate", model=plain, prompt="a", system="be")


def test_the_example_has_two_answers() -> None:
    assert [m.role for m in EXAMPLE].count("assistant") == 2
