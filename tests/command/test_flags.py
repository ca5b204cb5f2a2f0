from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from limbeck.command.flags import MISSING, Flag, Member, flags_of, shown
from tests.reference.toy_recipe import Toy


@pytest.fixture(scope="module")
def flags() -> dict[str, Flag]:
    return {f.name: f for f in flags_of(Toy.model_json_schema())}


def test_every_leaf_of_the_recipe_is_a_flag(flags: dict[str, Flag]) -> None:
    def leaves(kind: Any, prefix: str = "") -> set[str]:
        out = set()
        for name, field in kind.model_fields.items():
            inner = field.annotation
            dotted = f"{prefix}{name}"
            out |= leaves(inner, f"{dotted}.") if hasattr(inner, "model_fields") else {dotted}
        return out

    paths = {".".join(f.path) for f in flags.values() if f.member is None}
    assert paths == leaves(Toy) | {"model.height"}


@pytest.mark.parametrize(
    ("name", "form", "metavar"),
    [
        ("train.steps", "scalar", "INT"),
        ("train.packing", "switch", "BOOL"),
        ("train.optim.betas", "list", "FLOAT"),
        ("technique", "unions", "freeze|lora"),
        ("side", "union", "left|right"),
        ("pattern", "unions", "left|right"),
        ("columns", "mapping", "KEY=VALUE"),
        ("shares", "mapping", "KEY=VALUE"),
        ("layers", "list", "INT"),
        ("activation", "scalar", "gelu_tanh|silu"),
        ("size", "scalar", "1|2"),
        ("rate", "scalar", "FLOAT"),
        ("maybe", "scalar", "INT|BOOL"),
        ("model", "scalar", "TEXT"),
        ("extra", "yaml", "YAML"),
        ("either", "yaml", "YAML"),
        ("lora.rank", "scalar", "INT"),
        ("lora.part", "yaml", "YAML"),
    ],
)
def test_the_form_follows_from_the_schema(flags: dict[str, Flag], name: str, form: str, metavar: str) -> None:
    assert (flags[name].form, flags[name].metavar) == (form, metavar)


def test_a_short_name_is_a_leaf_that_nobody_shares(flags: dict[str, Flag]) -> None:
    assert flags["train.steps"].spellings == ("--steps", "--train.steps")
    assert flags["train.optim.learning-rate"].short == "learning-rate"
    assert flags["train.optim.seed"].spellings == ("--train.optim.seed",)  # --seed is the recipe's own
    assert flags["lora.rank"].short is None


def test_no_two_flags_share_a_spelling(flags: dict[str, Flag]) -> None:
    spelled = Counter(s for f in flags.values() for s in f.spellings)
    assert [s for s, n in spelled.items() if n > 1] == []


def test_parts_of_a_member_stand_under_its_heading(flags: dict[str, Flag]) -> None:
    part = flags["freeze.inner.height"]
    assert (part.section, part.intro) == ("technique freeze inner", "what it lies in")
    assert (part.member, part.path) == (Member(("techniques",), "freeze"), ("inner", "height"))


def test_members_know_their_union(flags: dict[str, Flag]) -> None:
    assert flags["lora.rank"].member == Member(("techniques",), "lora")
    assert flags["right.size"].member == Member(("side",), "right")
    assert flags["pattern.right.size"].member == Member(("pattern",), "right")  # the short prefix is taken


def test_defaults_of_an_owner_win_over_those_of_its_parts(flags: dict[str, Flag]) -> None:
    assert flags["train.optim.learning-rate"].default == 0.01
    assert flags["train.optim.seed"].default == 1
    assert flags["extra"].default is MISSING


def test_bounds_sections_and_null(flags: dict[str, Flag]) -> None:
    rate = flags["train.optim.learning-rate"]
    assert (rate.bounds, rate.section, rate.intro) == ("> 0, <= 1", "train.optim", "How the weights move.")
    assert flags["columns"].section == "data"
    assert flags["out"].section == "common"
    assert flags["rate"].nullable and not flags["model"].nullable
    assert flags["layers"].single and not flags["stop"].single
    assert flags["stop"].verbatim and flags["words"].verbatim and not flags["layers"].verbatim


def test_shown_as_typed() -> None:
    assert [shown(v) for v in (None, True, False, 0.5, 1e-8, 3, "x")] == [
        "none",
        "true",
        "false",
        "0.5",
        "1e-08",
        "3",
        "x",
    ]


def test_a_field_without_a_type_takes_yaml() -> None:
    schema = {"properties": {"anything": {}, "rows": {"type": "array", "items": {"type": "object"}}}}
    assert [f.form for f in flags_of(schema)] == ["yaml", "yaml"]


def test_untyped_choices_find_their_type() -> None:
    schema = {"properties": {"n": {"enum": [1, 2]}, "s": {"const": "a"}, "x": {"enum": [0.5]}, "b": {"enum": [True]}}}
    found = {f.name: f for f in flags_of(schema)}
    assert [sorted(found[n].types) for n in "nsxb"] == [["integer"], ["string"], ["number"], ["boolean"]]
    assert found["s"].choices == ("a",)
