"""Chat templates as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from limbeck.errors import ConfigError, ModelError
from limbeck.integrations.chat import JinjaTemplate
from tests.reference.small_tokenizer import byte_level

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'system' and loop.index0 > 0 %}\n"
    "{{ raise_exception('system comes first') }}{% endif %}\n"
    "<|{{ message['role'] }}|>\n{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% if loop.index > 9 %}{% break %}{% endif %}"
    "{% endfor %}\n{{ {'é': 1} | tojson }}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " Who are you? <b>"},
    {"role": "assistant", "content": "A limb"},
]


def folder(path: Path, template: Any, apart: bool = False) -> Path:
    byte_level().save(path)
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if apart:
        (path / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    file.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("answer", [False, True])
def test_it_renders_as_transformers_does(tmp_path: Path, apart: bool, answer: bool) -> None:
    where = folder(tmp_path, TEMPLATE, apart)
    template = JinjaTemplate.read(where)
    assert template is not None
    talk = TALK[:2] if answer else TALK
    theirs = AutoTokenizer.from_pretrained(where).apply_chat_template(
        talk, tokenize=False, add_generation_prompt=answer, continue_final_message=not answer
    )
    assert template.render(talk, answer=answer) == theirs
    assert theirs.endswith("<|assistant|>\n" if answer else "A limb")


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    assert JinjaTemplate.read(tmp_path) is None


def test_one_of_several_is_named(tmp_path: Path) -> None:
    where = folder(tmp_path, [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}])
    found = [JinjaTemplate.read(where, name) for name in ("default", "tools")]
    assert [t.text for t in found if t is not None] == ["a", "b"]
    with pytest.raises(ConfigError, match="has no chat template 'other', only default, tools"):
        JinjaTemplate.read(where, "other")


def test_what_a_template_refuses_is_one_sentence(tmp_path: Path) -> None:
    template = JinjaTemplate(TEMPLATE)
    with pytest.raises(ModelError, match="refuses this conversation: system comes first"):
        template.render([TALK[1], TALK[0]])
    with pytest.raises(ModelError, match="changes the last turn"):
        JinjaTemplate("{{ messages[-1]['content'] | upper }}").render(TALK, answer=False)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config.json cannot be read"):
        JinjaTemplate.read(tmp_path)
