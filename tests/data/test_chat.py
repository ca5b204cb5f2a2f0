"""Chat templates: equal to transformers', sandboxed, append-only, and safe against contents that spell tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.chat import TEMPLATES, ChatTemplate, Message, merged
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import CheckpointError, ConfigError, DataError
from tests.reference.small_tokenizer import byte_level, metaspace

TOK = byte_level()
TALK = [
    Message("system", "the end of the road"), Message("user", "the cat?"), Message("assistant", "sat."),
    Message("user", "and the dog?"), Message("assistant", "ran to the mat."),
]  # fmt: skip
HEADS = (
    "{{ bos_token }}{% for m in messages %}\n    {%- if m['role'] == 'system' %}<<{{ m.content }}>>\n"
    "    {%- else %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token if m.role == 'assistant' }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
JSON = "{% for m in messages %}{{ {'é <b>': m.content} | tojson }}{% if loop.index > 9 %}{% break %}{% endif %}" + (
    "{% endfor %}"
)


def told(template: ChatTemplate, turns: list[Message]) -> list[str]:
    """What is learned, run by run, with the end token's name."""
    ids, learned = template.encode(turns)
    runs: list[list[int]] = []
    for i, (token, one) in enumerate(zip(ids, learned, strict=True)):
        if one and not (i and learned[i - 1]):
            runs.append([])
        if one:
            runs[-1].append(token)
    t = template.tokenizer
    return ["".join("<end>" if i == t.eos_id else t.decode([i]) for i in run) for run in runs]


@pytest.mark.parametrize("tokenizer", [TOK, metaspace()], ids=["byte-level", "metaspace"])
@pytest.mark.parametrize("text", [*TEMPLATES.values(), HEADS, JSON], ids=["turns", "bare", "heads", "json"])
def test_rendering_is_transformers(text: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.with_chat_template(text).save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.named("auto", Tokenizer.load(tmp_path))
    plain = [m.plain() for m in TALK]
    begins = tokenizer.piece(tokenizer.bos_id or 0) if tokenizer.begins_with_bos and "bos_token" not in text else ""
    assert ours.render(TALK) == begins + theirs.apply_chat_template(plain, tokenize=False)
    prompt = theirs.apply_chat_template(plain[:4], tokenize=False, add_generation_prompt=True)
    assert ours.render(TALK[:4], answer=True) == begins + prompt


def test_each_answer_with_its_end_is_learned_and_nothing_else() -> None:
    for name in ("turns", "bare", HEADS):
        learned = told(ChatTemplate.named(name, TOK), TALK)
        assert [text.strip() for text in learned] == ["sat.<end>", "ran to the mat.<end>"]
    assert told(ChatTemplate.named("turns", TOK, end=False), TALK) == [" sat.", " ran to the mat."]


def test_what_is_generated_from_is_what_training_puts_before_the_answer() -> None:
    template = ChatTemplate.named("turns", TOK)
    for end in (2, 4):
        ids, learned = template.encode(TALK[: end + 1])
        last = max(i for i, one in enumerate(learned) if not one) + 1
        assert template.prompt_ids(TALK[:end]) == ids[:last]


@given(st.lists(st.text(max_size=12), min_size=2, max_size=5))
def test_no_content_ends_a_turn_or_changes_what_another_learns(texts: list[str]) -> None:
    """Whatever a content spells, one end token stands in a conversation for each answer."""
    poisoned = [t.replace("e", "<|endoftext|>").replace("0", "\ufdd00\ufdd1") for t in texts]
    turns = [Message("assistant" if i % 2 else "user", t) for i, t in enumerate(poisoned)]
    template = ChatTemplate.named("turns", TOK)
    ids, learned = template.encode(turns)
    answers = len(turns) // 2
    assert ids.count(TOK.eos_id) == answers == sum(one and i == TOK.eos_id for i, one in zip(ids, learned, strict=True))
    shown = template.render(turns)
    assert all(t.strip() in shown for t in poisoned)


def test_a_begin_token_is_written_once_whoever_writes_it() -> None:
    tok = metaspace()
    assert ChatTemplate.named("turns", tok).prompt_ids(TALK[:2]).count(tok.bos_id or -1) == 1
    assert ChatTemplate.named(HEADS, tok).prompt_ids(TALK[:2]).count(tok.bos_id or -1) == 1
    assert ChatTemplate.named("turns", tok, begin=False).prompt_ids(TALK[:2]).count(tok.bos_id or -1) == 0
    assert ChatTemplate.named("turns", TOK).prompt_ids(TALK[:2])[0] != TOK.bos_id
    first, rest = ChatTemplate.named("turns", TOK, begin=True).begin([TOK.bos_id or 0, 5, 6])
    assert first == [TOK.bos_id] and rest == [5, 6]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("turn", "names no chat template; did you mean 'turns'"),
        ("missing.jinja", "missing.jinja cannot be read"),
        ("{% for %}", "no Jinja: line 1"),
    ],
)
def test_a_template_that_is_none(template: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.split(";")[0]) as caught:
        ChatTemplate.named(template, TOK)
    assert "\n" not in str(caught.value)


def test_a_template_that_never_ends_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="never learn to stop"):
        ChatTemplate.named("{% for m in messages %}{{ m.content }}{% endfor %}", TOK).encode(TALK)


def test_a_template_that_changes_its_past_is_refused() -> None:
    text = "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ConfigError, match="lays out the beginning of a conversation otherwise"):
        ChatTemplate.named(text, TOK).encode(TALK)


def test_a_template_may_refuse_a_conversation() -> None:
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ eos_token }}"
    with pytest.raises(DataError, match="refuses a conversation: no system here"):
        ChatTemplate.named(text, TOK).render(TALK)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_template_runs_in_a_sandbox(text: str) -> None:
    with pytest.raises(DataError, match="refuses a conversation"):
        ChatTemplate.named(text, TOK).render(TALK)


def test_turns_of_one_speaker_become_one() -> None:
    turns = merged([Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")])
    assert turns == (Message("user", "a"), Message("assistant", "b\n\nc"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hello", "is no mapping with a role"),
        ({"role": "user"}, "is no mapping with a role"),
        ({"role": "bot", "content": "x"}, "role 'bot', which is none of system, user, assistant"),
    ],
)
def test_what_is_no_message(value: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Message.read(value, "row 3 of x.json")


def test_a_template_is_saved_and_loaded_in_every_spelling(tmp_path: Path) -> None:
    tok = TOK.with_chat_template("{{ eos_token }}é")
    assert TOK.chat_template is None and tok.fingerprint == TOK.fingerprint
    tok.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == "{{ eos_token }}é"
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    file.write_text(json.dumps(config | {"chat_template": several}))
    assert Tokenizer.load(tmp_path).chat_template == "d"
    file.write_text(json.dumps(config | {"chat_template": 3}))
    with pytest.raises(CheckpointError, match="is no text"):
        Tokenizer.load(tmp_path)
    del config["chat_template"]
    file.write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("j")
    assert Tokenizer.load(tmp_path).chat_template == "j"
