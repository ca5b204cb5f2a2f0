"""One begin token, whole conversations, the generation tag, and errors that name their row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.chat import ChatTemplate, Message
from limbeck.data.instructions import encode_conversations
from limbeck.data.pairs import encode_pairs
from limbeck.data.preferences import read_preferences
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import CheckpointError, ConfigError, DataError
from limbeck.integrations.chat import JinjaTemplate
from limbeck.jobs.generation import chat_ids, prompt_ids
from limbeck.tasks.instructions import Instructions
from tests.data.test_chat import TALK, told
from tests.data.test_instructions import rows_of, talk
from tests.reference.small_tokenizer import byte_level, metaspace

ONE = [Message("user", "the cat?")]
BODY = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    + ("{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}")
)
BEGINS = {
    "none": BODY,
    "named": "{{ bos_token }}" + BODY,
    "as text": "<s>" + BODY,
    "named, never written": "{% if false %}{{ bos_token }}{% endif %}" + BODY,
    "in a comment": "{# no bos_token #}" + BODY,
    "only after a system turn": "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}" + BODY,
    "only without a system turn": "{% if messages[0].role != 'system' %}<s>{% endif %}" + BODY,
}
FIRST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %} {{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.mark.parametrize("text", BEGINS.values(), ids=BEGINS)
@pytest.mark.parametrize("turns", [TALK, TALK[1:]], ids=["system first", "user first"])
def test_one_begin_token_however_the_template_writes_it(text: str, turns: list[Message], tmp_path: Path) -> None:
    """Training, generating, evaluating and the harness see the same ids, before and after a save."""
    tok = metaspace()
    task = Instructions(template=text)
    want = ChatTemplate.named(text, tok).prompt_ids(turns[:-1])
    assert want[0] == tok.bos_id and want.count(1) == 1
    assert ChatTemplate.named(text, tok).encode(turns)[0][: len(want)] == want
    task.equip(tok).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.begins_with_bos and chat_ids(loaded, turns[:-1], "model") == want
    assert chat_ids(tok.with_chat_template(text), turns[:-1], "model") == want
    laid_out = JinjaTemplate.read(tmp_path)
    assert laid_out is not None
    asked = loaded.with_begin(loaded.encode(laid_out.render([m.plain() for m in turns[:-1]]), specials=True))
    assert asked[0] == 1 and asked.count(1) == 1  # as the harness encodes contexts


def test_the_template_that_lacks_it_is_given_the_begin_token_for_other_tools() -> None:
    tok = metaspace()
    given = {name: ChatTemplate.named(text, tok).text for name, text in BEGINS.items()}
    assert {name for name, text in given.items() if text == "{{ bos_token }}" + BEGINS[name]} == {
        "none", "named, never written", "in a comment",
    }  # fmt: skip


def test_without_a_begin_token_none_is_put_after_a_save_either(tmp_path: Path) -> None:
    tok, task = metaspace(), Instructions(template=BODY, begin=False)
    task.equip(tok).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert chat_ids(loaded, ONE, "model") == ChatTemplate.named(BODY, tok, begin=False).prompt_ids(ONE)
    assert chat_ids(loaded, ONE, "model").count(1) == 0 and tok.begins_with_bos


def test_a_content_that_spells_the_begin_token_is_no_begin_token() -> None:
    ids = ChatTemplate.named("bare", metaspace()).prompt_ids([Message("user", "<s>a")])
    assert ids[0] == 1 and ids.count(1) == 1
    assert ChatTemplate.named("bare", metaspace(), begin=False).prompt_ids([Message("user", "<s>a")]).count(1) == 0


def test_plain_texts_begin_once_for_generate_and_the_harness() -> None:
    tok = metaspace()
    assert prompt_ids(tok, "the cat")[:1] == [1] and prompt_ids(tok, "") == [1]
    assert prompt_ids(byte_level(), "the cat") == byte_level().encode("the cat")
    assert prompt_ids(byte_level(), "") == [byte_level().eos_id]
    assert tok.with_begin([1, 5]) == [1, 5] and tok.with_begin([5]) == [1, 5] and tok.with_begin([5], False) == [5]


def test_a_conversation_may_begin_with_an_answer() -> None:
    """The template that refuses an empty conversation lays out the whole one."""
    turns = [Message("assistant", "I am 0."), Message("user", "the cat?"), Message("assistant", "sat.")]
    template = ChatTemplate.named(FIRST, byte_level())
    assert told(template, turns) == [" I am 0.<end>", " sat.<end>"]
    ids, learned = template.encode(turns)
    assert template.prompt_ids([]) == ids[: learned.index(True)]
    with pytest.raises(DataError, match="no system turn"):
        template.prompt_ids([Message("system", "a")])


def test_what_hides_where_an_answer_begins_is_refused() -> None:
    text = "{{ messages[0].role }}{% for m in messages %}{{ m.content | length }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match="refuses a conversation"):
        ChatTemplate.named(text, byte_level()).prompt_ids([])


def test_the_generation_tag_is_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "{% set a = 1 %}" + MARKED.replace("{% generation %}", "{% generation %}{% set a = 2 %}") + "{{ a }}"
    byte_level().with_chat_template(text).save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.named("auto", Tokenizer.load(tmp_path))
    plain = [m.plain() for m in TALK[1:]]
    assert ours.render(TALK[1:]) == theirs.apply_chat_template(plain, tokenize=False)
    asked = theirs.apply_chat_template(plain[:3], tokenize=False, add_generation_prompt=True)
    assert ours.render(TALK[1:4], answer=True) == asked
    assert told(ChatTemplate.named(MARKED, byte_level()), TALK[1:]) == [" sat.<end>", " ran to the mat.<end>"]
    for broken in ("{% generation %}", "{% endgeneration %}"):
        with pytest.raises(ConfigError, match="no Jinja: line 1"):
            ChatTemplate(broken, byte_level())
    endless = "{% generation %}{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match="runs for too long"):
        ChatTemplate(endless + "{% endgeneration %}", byte_level()).render(TALK)


def test_a_file_of_the_template_goes_before_the_config(tmp_path: Path) -> None:
    byte_level().with_chat_template("config").save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert Tokenizer.load(tmp_path).chat_template == "file {{ eos_token }}"
    byte_level().with_chat_template("later").save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == "later"


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="chat_template.jinja cannot be read"):
        Tokenizer.load(tmp_path)


REFUSES = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + (
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_an_error_of_the_template_names_the_row(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, talk(("user", "a"), ("assistant", "b")), talk(("system", "s"), ("user", "a"), ("assistant", "b"))
    )
    with pytest.raises(DataError, match=r"row talks:2 of .*refuses a conversation: no system turn"):
        encode_conversations(rows, ChatTemplate.named(REFUSES, byte_level()), 100)
    changing = "{{ messages | length }}" + BODY
    with pytest.raises(ConfigError, match=r"row talks:1 of .*lays out the beginning of a conversation otherwise"):
        encode_conversations(rows, ChatTemplate.named(changing, byte_level()), 100)
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}
    sides = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    file.write_text(json.dumps(pair | sides) + "\n")
    with pytest.raises(DataError, match=r"row pairs:1 of .*refuses a conversation: no system turn"):
        encode_pairs(read_preferences(str(file)), ChatTemplate.named(REFUSES, byte_level()), 100)
