from __future__ import annotations

from typing import Any

import pytest

from limbeck.command.flags import Flag, flags_of
from limbeck.command.values import converted, overlay
from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.verbs.finetune import Finetune
from tests.reference.toy_recipe import Box, Freeze, Left, Lora, Right, Toy

ALL = flags_of(Toy.model_json_schema())
NAMED: dict[str, Flag] = {f.name: f for f in ALL}


def resolve(values: dict[str, Any], **typed: str | list[str]) -> Toy:
    given = []
    for name, text in typed.items():
        flag = NAMED[name.replace("__", ".").replace("_", "-")]
        given.append((flag, converted(flag, [text] if isinstance(text, str) else text)))
    return build(Toy, overlay(values, ALL, given))


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("train.steps", ["7"], 7),
        ("train.steps", ["none"], None),
        ("train.steps", ["1", "2"], 2),
        ("rate", ["1e-4"], 1e-4),
        ("rate", ["3"], 3.0),
        ("activation", ["gelu-tanh"], "gelu_tanh"),
        ("size", ["2"], 2),
        ("maybe", ["yes"], True),
        ("maybe", ["Off"], False),
        ("maybe", ["3"], 3),
        ("layers", ["4"], 4),
        ("layers", ["4,5", "6"], [4, 5, 6]),
        ("layers", [""], []),
        ("stop", ["a,b", ""], ["a,b", ""]),
        ("words", ["one, two"], ["one, two"]),
        ("columns", ["a=b", "c=d=e"], {"a": "b", "c": "d=e"}),
        ("shares", ["x=1"], {"x": 1.0}),
        ("technique", ["lora,freeze", "lora"], ["lora", "freeze", "lora"]),
        ("technique", ["none"], []),
        ("pattern", ["none"], None),
        ("extra", ["{a: [1, 1e-3]}"], {"a": [1, 1e-3]}),
    ],
)
def test_text_becomes_the_flags_type(name: str, texts: list[str], value: object) -> None:
    got = converted(NAMED[name], texts)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("train.steps", "many", "--steps takes a whole number or none, not 'many'"),
        ("maybe", "perhaps", "--maybe takes a whole number or true or false, not 'perhaps'"),
        ("activation", "silo", "--activation is one of gelu_tanh, silu, not 'silo'; did you mean 'silu'?"),
        ("columns", "a", "--columns takes KEY=VALUE, not 'a'"),
        ("columns", "=a", "--columns takes KEY=VALUE, not '=a'"),
        ("extra", "{a: ", "--extra is not valid YAML: "),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        converted(NAMED[name], [text])
    assert str(caught.value).startswith(sentence)


def test_flags_override_yaml_and_leave_the_rest() -> None:
    toy = resolve({"train": {"steps": 5, "packing": True}, "rate": 2}, train__steps="9")
    assert (toy.train.steps, toy.train.packing, toy.rate) == (9, True, 2.0)


def test_the_yaml_is_not_changed() -> None:
    values = {"techniques": [{"kind": "lora", "rank": 2}], "train": {"steps": 1}}
    resolve(values, lora__rank="3", train__steps="2")
    assert values == {"techniques": [{"kind": "lora", "rank": 2}], "train": {"steps": 1}}


def test_mappings_merge() -> None:
    toy = resolve({"columns": {"a": "x", "b": "y"}}, columns=["b=z"])
    assert toy.columns == {"a": "x", "b": "z"}


def test_a_null_section_is_made_anew() -> None:
    assert resolve({"train": None}, train__steps="4").train.steps == 4


def test_techniques_are_ordered_and_keep_what_the_yaml_says_of_their_kind() -> None:
    toy = resolve({"techniques": [{"kind": "lora", "rank": 2}]}, technique=["freeze", "lora"], lora__targets="a,b")
    assert toy.techniques == (Freeze(), Lora(rank=2, targets=("a", "b")))


def test_a_part_of_a_member_is_set() -> None:
    toy = resolve({"techniques": [{"kind": "freeze", "first": 2}]}, freeze__inner__height="9")
    assert toy.techniques == (Freeze(first=2, inner=Box(height=9)),)


def test_a_members_flag_alone_changes_the_yamls_entry() -> None:
    toy = resolve({"techniques": [{"kind": "freeze"}, {"kind": "lora", "rank": 2}]}, lora__rank="64")
    assert toy.techniques == (Freeze(), Lora(rank=64))


def test_two_of_a_kind_keep_their_own_settings() -> None:
    twice = {"techniques": [{"kind": "lora", "rank": 2}, {"kind": "lora", "rank": 4}]}
    assert resolve(twice, technique="lora,lora").techniques == (Lora(rank=2), Lora(rank=4))
    with pytest.raises(ConfigError, match="--lora.rank is ambiguous: 'lora' stands 2 times"):
        resolve(twice, lora__rank="8")


def test_techniques_can_be_emptied() -> None:
    assert resolve({"techniques": [{"kind": "lora"}]}, technique="none").techniques == ()


def test_a_member_without_its_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="--lora.rank needs --technique lora, which is not given"):
        resolve({}, lora__rank="8")
    with pytest.raises(ConfigError, match="--right.size needs --side right"):
        resolve({}, side="left", right__size="8")


def test_a_default_member_may_be_changed_without_naming_it() -> None:
    assert resolve({}).side == Right(size=5)
    assert resolve({}, right__size="8").side == Right(size=8)
    assert resolve({}, side="right").side == Right(size=5)
    assert resolve({}, side="left").side == Left()


def test_one_or_many() -> None:
    assert resolve({}, pattern="right", pattern__right__size="9").pattern == Right(size=9)
    assert resolve({}, pattern="left,right").pattern == (Left(), Right())
    assert resolve({"pattern": {"kind": "left"}}, pattern="none").pattern is None


def test_a_whole_and_its_part_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--model and --model\.height exclude each other"):
        resolve({}, model="x", model__height="2")
    assert resolve({"model": "x"}, model__height="2").model.height == 2  # type: ignore[union-attr]


def test_rubbish_in_the_yaml_gives_way_to_flags_or_is_an_error() -> None:
    assert resolve({"techniques": 5}, technique="freeze").techniques == (Freeze(),)
    with pytest.raises(ConfigError, match="--lora.rank needs --technique lora"):
        resolve({"techniques": ["lora"]}, lora__rank="2")
    with pytest.raises(ConfigError, match="'techniques' in the configuration"):
        resolve({"techniques": 5}, train__steps="3")


def test_a_members_field_may_be_called_as_a_part_of_the_recipe() -> None:
    """``--freeze.train`` is no ``--train``, which would be the whole of ``--train.steps``."""
    flags = flags_of(Finetune.model_json_schema())
    named = {f.name: f for f in flags}
    given = [(named["technique"], ["freeze"]), (named["freeze.train"], "half"), (named["train.steps"], 2)]
    assert overlay({}, flags, given) == {"train": {"steps": 2}, "techniques": [{"kind": "freeze", "train": "half"}]}
