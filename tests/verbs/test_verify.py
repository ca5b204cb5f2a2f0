from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from limbeck.errors import ConfigError, RunError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.recipe import Display
from limbeck.verbs.export import Export
from limbeck.verbs.verify import Verify
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level

SHAPE = {**MODERN, "hidden_size": 64, "ffn_width": 96}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = copy.copy(byte_level())
    tokenizer.chat_template = TEMPLATE
    save_bundle(decoder(**SHAPE), tokenizer, tmp_path / "m", generation={"eos_token_id": [0, 5]})
    return tmp_path / "m"


def verify(source: Path, target: Path, **options) -> dict:
    return Verify(source=str(source), target=str(target), **options).run(Display.silent()).values


def test_an_export_equals_its_source_whoever_opens_it(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    values = Export(model=str(folder), to="gguf", type="f32", out=str(file)).run(Display.silent()).values
    assert values["told"] == []
    assert verify(folder, file)["equal"]
    assert verify(folder, folder, engine="transformers")["equal"]


def test_a_difference_is_named_and_fails_where_asked(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(folder))
    with torch.no_grad():
        bundle.model.blocks[1].ffn.down.weight.mul_(1.1)
    save_bundle(bundle.model, bundle.tokenizer, tmp_path / "other", generation={"eos_token_id": 0})
    values = verify(folder, tmp_path / "other")
    assert not values["equal"] and values["kl_nats"] > 0
    found = {(finding["kind"], finding["where"]) for finding in values["findings"]}
    assert found >= {("stops", "stop tokens"), ("weight", "blocks.1.ffn.down.weight")}
    assert ("activation", "blocks.1.ffn.down") in found
    with pytest.raises(RunError, match="does not stop at"):
        verify(folder, tmp_path / "other", strict=True)


def test_an_end_id_too_many_is_told_by_the_export(tmp_path: Path) -> None:
    save_bundle(decoder(**SHAPE), byte_level(), tmp_path / "m", generation={"eos_token_id": [0, 5, 7, 9]})
    values = Export(model=str(tmp_path / "m"), to="gguf", out=str(tmp_path / "m.gguf")).run(Display.silent()).values
    assert any("9" in told for told in values["told"])


def test_prompts_of_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("once upon a time the king " * 20)
    assert verify(folder, folder, text=str(tmp_path / "t.txt"))["flips"]["items"] > 20
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ConfigError, match="no line of 200"):
        verify(folder, folder, text=str(tmp_path / "short.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        verify(folder, folder, text=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="leave it out"):
        verify(folder, folder, engine="transformers", cache="int8")
