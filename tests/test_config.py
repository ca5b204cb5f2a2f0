from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from limbeck.config import Config, build, dump, load, merge, parse, read
from limbeck.errors import ConfigError


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 1.0


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)


Shape = Annotated[Square | Circle, Field(discriminator="kind")]


class Inner(Config):
    steps: int = 1
    text: str = ""
    rate: float = 0.1
    none: str | None = None


class Outer(Config):
    name: str
    inner: Inner = Inner()
    shapes: tuple[Shape, ...] = ()
    one: Shape | tuple[Shape, ...] = Square()
    table: dict[str, float] = {}
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> Outer:
        if self.low > self.high:
            raise ValueError("Low is above high")
        return self


def sentence(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, "'name' is required in x.yaml"),
        ({"name": "a", "naem": 1}, "unknown key 'naem' in x.yaml; did you mean 'name'?"),
        ({"name": "a", "inner": {"stepz": 1}}, "unknown key 'inner.stepz' in x.yaml; did you mean 'steps'?"),
        ({"name": "a", "inner": {"qqqqq": 1}}, "unknown key 'inner.qqqqq' in x.yaml"),
        (
            {"name": "a", "shapes": [{"kind": "square", "syde": 1}]},
            "unknown key 'shapes.0.syde' in x.yaml; did you mean 'side'?",
        ),
        ({"name": "a", "shapes": [{"side": 1}]}, "'shapes.0' in x.yaml needs a 'kind'"),
        (
            {"name": "a", "shapes": [{"kind": "circel"}]},
            "'shapes.0' in x.yaml is of kind square, circle, not 'circel'; did you mean 'circle'?",
        ),
        (
            {"name": "a", "shapes": [{"kind": "circle", "radius": -1}]},
            "'shapes.0.radius' in x.yaml: must be above 0 (got -1)",
        ),
        ({"name": "a", "low": 10}, "x.yaml: low is above high"),
        (
            {"name": "a", "inner": {"steps": "many"}},
            "'inner.steps' in x.yaml: must be a whole number (got 'many')",
        ),
        (
            {"name": "a", "inner": {"rate": float("nan")}},
            "'inner.rate' in x.yaml: must be a finite number (got nan)",
        ),
    ],
)
def test_every_problem_is_a_sentence_that_names_its_place(values: dict[str, Any], wanted: str) -> None:
    assert sentence(values) == wanted


def test_several_problems_are_all_told() -> None:
    told = sentence({"inner": {"stepz": 1}, "low": "x" * 500})
    assert "'name' is required" in told and "'inner.stepz'" in told and "'low'" in told
    assert len(told) < 400


def test_a_union_names_each_key_once_and_without_pydantics_labels() -> None:
    told = sentence({"name": "a", "one": {"kind": "circle", "radius": 0}})
    assert "'one.radius' in x.yaml: must be above 0" in told
    assert "tuple[" not in told


def test_configs_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().steps = 2  # type: ignore[misc]


def test_merge_is_deep_and_pure() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": 3}
    over = {"a": {"b": 9}, "d": [2], "e": {"f": 1}}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": [2], "e": {"f": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1], "e": 3}


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("name: file\ninner: {steps: 5, rate: 1e-4}\n")
    config = load(Outer, file, {"inner": {"steps": 7}})
    assert (config.name, config.inner) == ("file", Inner(steps=7, rate=1e-4))
    assert load(Outer, None, {"name": "flags"}) == Outer(name="flags")
    file.write_text("naem: x\n")
    with pytest.raises(ConfigError, match=f"unknown key 'naem' in {file}"):
        load(Outer, file, {})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: [", "is not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("- 1", "must hold 'key: value' lines, not a list"),
        ("just text", "must hold 'key: value' lines, not a str"),
        ("1: 2", "must hold 'key: value' lines"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, wanted: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert wanted in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "x.yaml")


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read(tmp_path / "x.yaml") == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.E+3", -2000.0),
        (".5e1", 5.0),
        ("1.5", 1.5),
        ("3", 3),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
        ("1e", "1e"),
    ],
)
def test_exponents_are_numbers(text: str, value: object) -> None:
    got = parse(text, "x")
    assert got == value and type(got) is type(value)


def test_merge_keys_are_no_repetition() -> None:
    text = "a: &a {x: 1, y: 1}\ndeep: {b: &b {<<: *a, x: 2}}\nc: {<<: *b, y: 3}\n"
    assert parse(text, "x") == {"a": {"x": 1, "y": 1}, "deep": {"b": {"x": 2, "y": 1}}, "c": {"x": 2, "y": 3}}


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [
        "1e5",
        "no",
        "null",
        "~",
        "1:30",
        "0x1f",
        "2024-01-01",
        "<<",
        "=",
        "a: b",
        "# c",
        "- d",
        "1_000",
        "089",
        "",
        "\r\n\x85",
    ]
)


@example(name="a\u2028", text="\r", none="\x85", steps=0, rate=0.0, table={"\u2029": 1.0})
@given(
    name=texts,
    text=texts,
    none=texts | st.none(),
    steps=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    table=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_dump_comes_back_equal(
    name: str, text: str, none: str | None, steps: int, rate: float, table: dict[str, float]
) -> None:
    inner = Inner(text=text, none=none, steps=steps, rate=rate)
    config = Outer(name=name, inner=inner, table=table, shapes=(Square(side=rate), Circle()), one=(Circle(), Circle()))
    assert build(Outer, parse(dump(config), "x")) == config


def test_yaml_that_would_eat_the_machine_is_refused(tmp_path: Path) -> None:
    bombs = {
        "nested": "[" * 3000 + "]" * 3000,
        "deep": "a: " + "{a: " * 60 + "1" + "}" * 60,
        "aliases": "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "itself": "a: &a [*a]\n",
        "long": "a: " + "x" * (1 << 20),
    }
    for name, text in bombs.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match="deep|more than"):
            read(file)
    with pytest.raises(ConfigError, match="a mapping with a key that is no text"):
        (tmp_path / "a.yaml").write_text("1: 2")
        read(tmp_path / "a.yaml")


def test_no_sentence_is_in_pydantic_s_words() -> None:
    class Inner(Config):
        n: int = Field(1, ge=1, le=9)

    class Outer(Config):
        name: str = "a"
        size: int = Field(2, gt=1)
        rate: float = Field(0.5, lt=1)
        on: bool = True
        kind: Literal["x", "y"] = "x"
        many: tuple[str, ...] = Field(("a",), min_length=1)
        table: dict[str, int] = Field(default_factory=dict)
        inner: Inner = Inner()

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": 1}, "must be text (put a number in quotes)"),
        ({"size": "two"}, "must be a whole number (got 'two')"),
        ({"size": 1.5}, "must be a whole number (got 1.5)"),
        ({"size": 1}, "must be above 1 (got 1)"),
        ({"rate": 2}, "must be below 1"),
        ({"rate": float("nan")}, "must be a finite number"),
        ({"rate": None}, "must be a number"),
        ({"on": "maybe"}, "must be true or false"),
        ({"kind": "z"}, "must be 'x' or 'y'"),
        ({"many": []}, "must hold 1 or more, not 0"),
        ({"many": 3}, "must be a list"),
        ({"table": [1]}, "must be 'key: value' pairs"),
        ({"inner": 3}, "must be 'key: value' pairs"),
        ({"inner": {"n": 0}}, "must be at least 1"),
        ({"inner": {"n": 10}}, "must be at most 9"),
    ]
    for values, words in wrong:
        with pytest.raises(ConfigError) as caught:
            build(Outer, values)
        assert words in str(caught.value) and "nput should" not in str(caught.value), str(caught.value)
