"""Model folders, tokenizers, templates and run folders with bytes changed: an error of ours, or a load."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.chat import TEMPLATES, ChatTemplate, Message
from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.load import load_bundle
from limbeck.run import Run
from tests.fuzz.limits import bounded, fuzzed, mutated
from tests.reference.small_model import saved
from tests.reference.small_tokenizer import byte_level


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "model")


def _header(raw: bytes) -> bytes:
    """The header of a safetensors file, which says where each tensor lies."""
    return raw[: 8 + struct.unpack("<Q", raw[:8])[0]]


@pytest.mark.parametrize(
    "name", ["config.json", "limbeck.json", "tokenizer.json", "generation_config.json", "model.safetensors"]
)
def test_model_folders(name: str, folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "m"))
    file = place / name
    if not file.exists():
        pytest.skip(f"this layout has no {name}")
    whole = file.read_bytes()
    head = _header(whole) if name.endswith(".safetensors") else whole
    rest = whole[len(head) :]

    @fuzzed
    @given(mutated(head))
    def target(content: bytes) -> None:
        file.write_bytes(content + rest)
        with bounded():
            bundle = load_bundle(str(place))
            ids = bundle.tokenizer.encode("one two", specials=True)
            assert all(0 <= i < bundle.model.config.vocab_size for i in ids)

    target()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer_files(name: str, folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "m"))
    file = place / name
    whole = file.read_bytes() if file.exists() else b'{"eos_token": "<|endoftext|>", "chat_template": "{{ messages }}"}'

    @fuzzed
    @given(mutated(whole))
    def target(content: bytes) -> None:
        file.write_bytes(content)
        with bounded():
            Tokenizer.load(place).encode("one two é")

    target()


TALK = (
    Message("user", "hi"),
    Message("assistant", "ho"),
    Message("user", "<|endoftext|>"),
    Message("assistant", "{{ 1 }}"),
)
PIECES = st.sampled_from(
    [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ eos_token }}",
        "{% if m.role == 'assistant' %}",
        "{% endif %}",
        "{{ m }}",
        "{% set x = 'a' * 9 %}",
        "{{ x ~ x }}",
        "{% macro f() %}",
        "{% endmacro %}",
        "{{ f() }}",
        "{{ raise_exception('x') }}",
        "{{ messages[5] }}",
        "{{ range(99999) | list }}",
        "{{ 1 / 0 }}",
        "{{ '%d' % 'a' }}",
        "{{ m.content.encode() }}",
        "{{ none.x }}",
        "{% break %}",
        "{{ messages | tojson }}",
        "{% if add_generation_prompt %}",
        "a",
        "\n",
        "{{",
        "%}",
        "{#",
        "\ud800",
        "\0",
    ]
)


@fuzzed
@given(
    st.one_of(
        st.lists(PIECES, max_size=9).map("".join),
        mutated(*(t.encode() for t in TEMPLATES.values())).map(lambda raw: raw.decode("utf-8", "replace")),
    )
)
def test_templates(text: str) -> None:
    with bounded():
        template = ChatTemplate(text, byte_level())
        ids, learned = template.encode(TALK)
        assert len(ids) == len(learned)
        template.prompt_ids(TALK[:1])


def test_run_folders(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    good = {
        "recipe.yaml": b"seed: 1\nout: x\n",
        "report.json": b'{"metrics": {}}',
        "metrics.jsonl": b'{"step": 1}\n{"step": 2}\n',
    }

    @fuzzed
    @given(st.sampled_from(sorted(good)), st.data())
    def target(name: str, data: Any) -> None:
        for other, content in good.items():
            (place / other).write_bytes(content)
        (place / name).write_bytes(data.draw(mutated(good[name])))
        with bounded():
            run = Run.open(place)
            run.recipe()
            run.report()
        with bounded():
            Run.open(place).metrics()

    target()
