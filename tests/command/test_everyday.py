"""Help in two levels, on the verbs as they are."""

from __future__ import annotations

import re
import shlex

import pytest

from limbeck import cli
from limbeck.command.everyday import EXAMPLES, MOST, everyday
from limbeck.command.flags import MISSING, flags_of
from limbeck.command.verb import schema
from tests.reference.toy_recipe import Toy

VERBS = list(schema()["verbs"])


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(args) == 0
    return capsys.readouterr().out


def listed(text: str) -> list[str]:
    return re.findall(r"^  (--[\w.-]+)", text, flags=re.M)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_short_and_the_rest_is_one_flag_away(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    short, whole = listed(shown(capsys, verb, "--help")), listed(shown(capsys, verb, "--help-all"))
    assert 0 < len(short) <= MOST and set(short) <= set(whole)
    flags = flags_of(schema()["verbs"][verb]["schema"])
    required = [f for f in flags if f.default is MISSING and not f.positional and f.member is None]
    assert {f.spellings[0] for f in required} <= set(short)
    assert len(whole) >= len([f for f in flags if not f.positional])


@pytest.mark.parametrize("verb", sorted(EXAMPLES))
def test_the_example_of_the_help_is_a_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"example:\n  {EXAMPLES[verb]}\n" in shown(capsys, verb, "--help")
    program, named, *flags = shlex.split(EXAMPLES[verb])
    assert (program, named) == ("limbeck", verb)
    assert shown(capsys, verb, *flags, "--print-config")


def test_the_flags_of_one_technique(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("finetune", "quantize"):
        found = listed(shown(capsys, verb, "--help-technique", "gptq"))
        assert found and all(name.startswith("--gptq.") for name in found)
    assert cli.main(["finetune", "--help-technique", "lara"]) == 2
    assert "did you mean 'lora'" in capsys.readouterr().err
    assert cli.main(["info", "--help-technique", "lora"]) == 2


def test_few_flags_are_all_shown() -> None:
    flags = [f for f in flags_of(Toy.model_json_schema()) if f.member is None][:20]
    assert everyday(flags, 0) == flags
    assert len(everyday(flags, MOST - 3)) == 3 + sum(f.positional for f in flags)
