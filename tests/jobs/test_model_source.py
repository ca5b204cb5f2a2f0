from __future__ import annotations

from pathlib import Path

import pytest

import limbeck
from limbeck.errors import ModelError
from limbeck.formats.gguf import write_gguf
from tests.reference.small_model import MODERN, decoder, saved
from tests.reference.small_tokenizer import byte_level


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_gguf(decoder(**MODERN, hidden_size=64, ffn_width=96), byte_level(), tmp_path / "m.gguf", kind="q4_0")
    return str(tmp_path / "m.gguf")


def test_kept_codes_take_less_memory_and_say_the_same(file: str) -> None:
    floats, codes = (limbeck.info(file, keep_codes=kept).report["model"] for kept in (False, True))
    assert codes["memory_bytes"] < 0.3 * floats["memory_bytes"]
    assert [t["kind"] for t in codes["techniques"]] == ["rtn"] and not floats["techniques"]
    model = limbeck.load(file, keep_codes=True)
    assert limbeck.info(model).report["model"]["memory_bytes"] == codes["memory_bytes"]
    given = {"probes": "off", "limit": 4, "memory": True}
    a, b = (limbeck.evaluate(m, "toy:stories", **given) for m in (model, file))
    assert a.metrics["nats per token"].value == pytest.approx(b.metrics["nats per token"].value, rel=1e-2)
    assert a.report["cost"]["memory_bytes"] < 0.3 * b.report["cost"]["memory_bytes"]


def test_a_verb_that_keeps_no_codes_takes_the_floats(file: str, tmp_path: Path) -> None:
    model = limbeck.load(file, keep_codes=True)
    assert model.export(tmp_path / "hf").report["family"] == "llama"
    assert model.export(tmp_path / "g", to="gguf").report["types"].keys() == {"F32", "Q4_0"}


def test_a_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    with pytest.raises(ModelError, match="leave keep_codes out"):
        limbeck.job("generate", {"model": str(source), "keep_codes": True})
