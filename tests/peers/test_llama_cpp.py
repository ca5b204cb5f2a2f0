"""I20: exported GGUF files, run by llama.cpp itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.config import build
from limbeck.data.batch import Batch
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import RunError
from limbeck.formats.gguf import write_gguf
from limbeck.formats.gguf_read import read_gguf
from limbeck.jobs.export.nearness import agreement
from limbeck.jobs.export.nearness_llama import llama_cpp_logits
from limbeck.jobs.recipe import Display
from limbeck.kernels.packed import dispatch
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN
from limbeck.verbs.export import Export
from tests.reference.small_model import MODERN, decoder, saved
from tests.reference.small_tokenizer import byte_level
from tests.reference.tokenizers import llama_like

pytestmark = pytest.mark.peers

SHAPE: dict[str, Any] = {"hidden_size": 64, "ffn_width": 96, "context": 64}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {**MODERN, "tied": False},
    "llama-tied-wide-heads": {**MODERN, "head_dim": 32},
    "qwen2": {**MODERN, "qkv_bias": True},
    "llama-biases": {**MODERN, "qkv_bias": True, "out_bias": True, "ffn_bias": True},
    "llama3-scaled": {
        **MODERN,
        "rope": {
            "theta": 500.0,
            "scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 16},
        },
    },
}
TEXTS = ("the cat sat on the mat.", "  two  spaces, été \U0001f30a\n\nand lines", "once", "can't 1234 don't")
TIE = 0.01  # of the spread of the logits: F16 products and an F16 cache move logits by less


@pytest.fixture
def opened() -> Callable[[Path], Any]:
    llama_cpp = pytest.importorskip("llama_cpp")

    def open_file(file: Path) -> Any:
        return llama_cpp.Llama(str(file), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False)

    return open_file


def theirs(llama: Any, ids: list[int]) -> Tensor:
    """(T, V) logits of llama.cpp."""
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(llama.scores[: len(ids)].copy())


@torch.no_grad()
def ours(model: Decoder, ids: list[int]) -> Tensor:
    with dispatch("reference"):
        out: Tensor = model(Batch.of_ids(torch.tensor([ids])))
    return out[0]


def sequence(length: int = 40) -> list[int]:
    return torch.randint(1, 280, (length,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_f16_gives_the_same_greedy_tokens(tmp_path: Path, opened: Callable[[Path], Any], name: str) -> None:
    model = decoder(**{**SHAPE, **MODELS[name]})
    write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="f16")
    llama, rounded = opened(tmp_path / "m.gguf"), read_gguf(tmp_path / "m.gguf").model
    ids = sequence(8)
    compared = 0
    for _ in range(32):
        logits = ours(rounded, ids)[-1]
        best = logits.topk(2)
        if float(best.values[0] - best.values[1]) > TIE * float(logits.max() - logits.min()):
            assert int(theirs(llama, ids)[-1].argmax()) == int(best.indices[0])
            compared += 1
        ids = [*ids, int(best.indices[0])]
    assert compared > 16


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_near_those_of_the_files_numbers(
    tmp_path: Path,
    opened: Callable[[Path], Any],
    name: str,
    kind: Any,
    record_property: Callable[[str, object], None],
) -> None:
    """What is left is llama.cpp's own rounding: activations to 8 bits beside quantized weights, the cache to F16."""
    model = decoder(**{**SHAPE, **MODELS[name]})
    if kind.startswith("q"):
        RTN(grid=Grid(format=kind)).apply(model)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind=kind)
    back = read_gguf(tmp_path / "m.gguf").model
    assert written.exact is (kind != "f16")
    found = agreement(ours(back, sequence())[None], theirs(opened(tmp_path / "m.gguf"), sequence())[None])
    for key, value in found.items():
        record_property(f"{name} {kind} {key}", value)
    assert found["kl_nats"] <= (0.02 if kind.startswith("q") else 1e-4), found
    assert found["top_agreement"] >= (0.85 if kind.startswith("q") else 0.97), found


@pytest.mark.parametrize("make", ["byte-level", "llama"])
def test_texts_are_cut_alike(tmp_path: Path, opened: Callable[[Path], Any], make: str) -> None:
    tokenizer = byte_level() if make == "byte-level" else Tokenizer.load(llama_like(tmp_path))
    model = decoder(**{**SHAPE, **MODERN, "vocab_size": tokenizer.vocab_size + 4})
    write_gguf(model, tokenizer, tmp_path / "m.gguf")
    llama = opened(tmp_path / "m.gguf")
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    begin = [tokenizer.bos_id] if tokenizer.begins_with_bos else []
    assert llama.tokenize(b"once", add_bos=True, special=False) == [*begin, *tokenizer.encode("once")]
    assert (llama.token_bos(), llama.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_the_export_s_report_has_llama_cpp_s_own_agreement(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llama_cpp")
    source = saved(tmp_path / "m", **SHAPE)
    recipe = build(Export, {"model": str(source), "out": str(tmp_path / "m.gguf"), "to": "gguf", "type": kind})
    values = recipe.run(Display.silent()).values
    mine, theirs = values["agreement"], values["llama_cpp_agreement"]
    assert theirs["of"].startswith("llama.cpp on the file (llama-cpp-python ")
    assert theirs["probe_tokens"] == mine["probe_tokens"] == 4 * 64
    # both are of one file: what llama.cpp rounds besides is small beside what the file rounds, or in itself
    assert abs(theirs["kl_nats"] - mine["kl_nats"]) <= (1e-4 if kind == "f16" else 0.02)
    assert theirs["kl_nats"] > 0 and theirs["top_agreement"] >= (0.97 if kind == "f16" else 0.6)


def test_a_file_that_llama_cpp_does_not_open_is_named(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF torn")
    with pytest.raises(RunError, match=r"llama.cpp does not open .*torn.gguf"):
        llama_cpp_logits(tmp_path / "torn.gguf", Batch.of_ids(torch.tensor([[1, 2]])))
