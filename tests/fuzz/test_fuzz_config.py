"""Configs, study files and command lines: one sentence and exit code 2, never 'unexpected'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from limbeck.command.values import converted
from limbeck.command.verb import Verb, schema
from limbeck.config import build, dump, parse, read
from limbeck.study.study import read_plan
from limbeck.verbs.table import recipe
from tests.fuzz.limits import bounded, fuzzed, mutated
from tests.reference.commands import Limbeck
from tests.reference.small_model import saved

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["none", "auto", "lora", "text", "toy:stories", "", "1e-4", "@a", "$b", "${NO_SUCH}", "../..", "~nobody", "\0"]
    ),
)


def _names(entry: Any) -> list[str]:
    return list(entry["schema"]["properties"])


@pytest.mark.parametrize("verb", list(schema()["verbs"]))
def test_recipes(verb: str) -> None:
    entry = schema()["verbs"][verb]
    names = st.one_of(st.sampled_from(_names(entry)), st.sampled_from(["kind", "steps", "rank", "x"]))
    values = st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5
    )
    required = {name: "x" for name in entry["schema"].get("required", ())}

    @fuzzed
    @given(st.dictionaries(names, values, max_size=4))
    def target(given_values: dict[str, Any]) -> None:
        with bounded():
            made = build(recipe(verb), {**required, **given_values}, "the case")
            assert build(recipe(verb), parse(dump(made), "again")) == made

    target()


PLAN = yaml.safe_dump(
    {
        "title": "t",
        "seeds": [0, 1],
        "common": {"data": "toy:stories"},
        "arms": {
            "a": {"verb": "pretrain", "values": {"train": {"steps": 1}}, "over": {"seed": [1, 2]}},
            "b": {"verb": "finetune", "values": {"model": "@a"}},
        },
        "compare": [["a", "b"]],
        "plots": [["x", "y"]],
    }
).encode()


def test_study_files(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"

    @fuzzed
    @given(mutated(PLAN, b"arms: {a: {verb: evaluate}}\nmodels: {m: x}\nfigures: {f: {values: {data: d}}}\n"))
    def target(content: bytes) -> None:
        file.write_bytes(content)
        with bounded():
            plan = read_plan(file)
            for name in plan.order():
                plan.values(name, {}, dict.fromkeys(plan.arms, "x"))
        with bounded():
            read(file)

    target()


@pytest.mark.parametrize("verb", list(schema()["verbs"]))
def test_flags(verb: str) -> None:
    flags = Verb(verb, schema()["verbs"][verb], lambda *_: None).flags
    texts = st.one_of(
        st.text(max_size=8), st.sampled_from(["none", "1", "-1", "1e400", "nan", "a=b", "a,b", "[", "{a: 1}", "9" * 40])
    )

    @fuzzed
    @given(st.sampled_from(flags), st.lists(texts, min_size=1, max_size=3))
    def target(flag: Any, given_texts: list[str]) -> None:
        with bounded():
            converted(flag, given_texts)

    target()


def test_command_lines(tmp_path: Path, limbeck: Limbeck) -> None:
    model = saved(tmp_path / "m")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one two"}\n{"text": "three"}\n')
    words = [
        "info",
        "generate",
        "evaluate",
        "audit",
        "score",
        "compare",
        "finetune",
        "export",
        "--data",
        "--task",
        "text",
        "qa",
        "--out",
        str(tmp_path / "out"),
        str(model),
        str(rows),
        str(tmp_path),
        "hi",
        "",
        "\udcff",
        "x" * 300,
        "--json",
        "--seed",
        "-1",
        "0",
        "9" * 30,
        "--model",
        "--config",
        "--limit",
        "1",
        "--no-generate",
        "--probes",
        "off",
        "--max-new-tokens",
        "2",
        "--columns",
        "a=b",
        "--temperature",
        "nan",
        "inf",
        "--samples",
        "3",
        "--dry-run",
        "--steps",
        "--predictions",
        "a\0b",
        "--device",
        "cuda",
        "tpu",
        "--context",
        "5",
        "--quotes",
        "on",
        "--",
        "--help",
        "--print-config",
        "--against",
        "--within",
        "~nobody/x",
        "--adapter",
    ]

    @fuzzed
    @given(st.lists(st.sampled_from(words), min_size=1, max_size=7))
    def target(argv: list[str]) -> None:
        with bounded():
            said = limbeck(*argv)
            assert said.code in (0, 1, 2), said.err
            assert "unexpected " not in said.err and "Traceback" not in said.err, (argv, said.err)
            assert said.code != 1 or not said.sentences, (argv, said.err)

    target()
