"""Templates come from anywhere: they reach nothing, and cannot run or grow without end."""

from __future__ import annotations

import time

import pytest

from limbeck.data.chat import ChatTemplate, Message, sandbox
from limbeck.errors import ConfigError, DataError
from tests.reference.small_tokenizer import byte_level

TALK = (Message("user", "hi"), Message("assistant", "ho"))


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ (2 ** 1000) ** 1000 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a' | indent(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000).join(['b'] * 100000) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ lipsum(n=10000) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ self.__dict__ }}" + "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{{ environment.tick }}{{ raise_exception('none') }}",
    ],
)
def test_nothing_is_reached_and_nothing_runs_away(text: str) -> None:
    began = time.process_time()
    with pytest.raises((DataError, ConfigError)) as caught:
        ChatTemplate(text, byte_level()).render(TALK)
    assert time.process_time() - began < 6 and "\n" not in str(caught.value)


def test_a_template_that_is_too_long_or_too_deep_is_refused() -> None:
    for text in ("a" * 300_000, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if a %}" * 500):
        with pytest.raises(ConfigError):
            ChatTemplate(text, byte_level())


def test_limits_leave_honest_templates_alone() -> None:
    text = (
        "{% set ns = namespace(n=0) %}{% macro who(m) %}{{ m.role | capitalize }}{% endmacro %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ '. ' ~ who(m) + ': ' + m.content | trim }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '-' * 3 }}{{ '%02d' % ns.n }}\n{% endfor %}"
    )
    said = ChatTemplate(text, byte_level())
    assert said.render(TALK).startswith("1. User: hi---01\n2. Assistant: ho")
    many = TALK * 2000
    assert said.render(many).count("User") == 2000


def test_each_rendering_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    template = sandbox().from_string("{% for m in messages %}{{ m }}{% endfor %}")
    assert template.render(messages=["a"]) == "a"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert template.render(messages=["b"]) == "b"
