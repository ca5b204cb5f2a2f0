from __future__ import annotations

import pytest

from limbeck.command.flags import Flag, flags_of
from limbeck.command.help import default_of, described, entry, sections
from tests.reference.toy_recipe import Toy

NAMED: dict[str, Flag] = {f.name: f for f in flags_of(Toy.model_json_schema())}


@pytest.mark.parametrize(
    ("name", "typed", "what"),
    [
        ("words", "WORDS", "what to say [repeat]"),
        ("train.steps", "--steps INT", "optimizer steps [>= 1; default: 100] (--train.steps)"),
        ("train.packing", "--packing / --no-packing", "pack short rows [default: false] (--train.packing)"),
        ("technique", "--technique freeze|lora", "applied in order [repeat or separate by commas]"),
        ("side", "--side left|right", "[default: right]"),
        ("shares", "--shares KEY=VALUE", "[repeat; default: a=0.5]"),
        ("rate", "--rate FLOAT", "[default: none]"),
        ("lora.targets", "--lora.targets TEXT", "what is adapted [repeat or separate by commas; default: qkv]"),
        ("extra", "--extra YAML", ""),
    ],
)
def test_entry_and_description(name: str, typed: str, what: str) -> None:
    assert (entry(NAMED[name]), described(NAMED[name])) == (typed, what)


def test_many_choices_move_to_the_description() -> None:
    kinds = tuple(f"technique-{i}" for i in range(9))
    for form, word in (("unions", "KIND"), ("scalar", "NAME")):
        flag = Flag(path=("x",), name="x", form=form, choices=kinds)  # type: ignore[arg-type]
        assert entry(flag) == f"--x {word}"
        assert described(flag).startswith("[one of technique-0, technique-1,")


def test_defaults_as_typed() -> None:
    def default(value: object) -> str | None:
        return default_of(Flag(path=("x",), name="x", form="scalar", default=value))

    assert default("\n") == "'\\n'"
    assert default([{"kind": "lora", "rank": 3}, 2]) == "lora, 2"
    assert default([{"format": "int4", "group_size": 32}]) is None
    assert [default(v) for v in (None, "", [], {}, 0, False)] == [None, None, None, None, "0", "false"]


def test_sections_go_from_own_to_common() -> None:
    titles = [title for title, _ in sections(list(NAMED.values()))]
    assert titles[0] == "" and titles[-1] == "common"
    assert titles.index("train") < titles.index("technique lora")
