"""K-quants that are written here, as the gguf package reads them: small errors, and llama.cpp's fallbacks and mixes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from limbeck.formats.gguf import write_gguf
from limbeck.formats.gguf_kquants import fallback, quantize
from limbeck.formats.load import load_bundle
from limbeck.model.config import DecoderConfig
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import llama_config, random_decoder

Kind = gguf.GGMLQuantizationType
ERRORS = {Kind.Q4_K: 0.075, Kind.Q5_K: 0.037, Kind.Q6_K: 0.021}


def normal(rows: int = 6, columns: int = 512, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).numpy()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda k: k.name)
def test_what_is_written_reads_back_near(kind: Kind) -> None:
    for weight in (normal(), normal() * 1e-3 + 2e-3, np.abs(normal()), -np.abs(normal())):
        data = quantize(weight, kind)
        assert data.dtype == np.uint8 and data.shape == (6, 2 * gguf.GGML_QUANT_SIZES[kind][1])
        back = gguf.quants.dequantize(data, kind)
        assert np.linalg.norm(back - weight) < ERRORS[kind] * np.linalg.norm(weight)
    assert not gguf.quants.dequantize(quantize(np.zeros((1, 256), np.float32), kind), kind).any()


def test_the_search_beats_a_plain_range() -> None:
    weight = normal()
    parts = weight.reshape(-1, 32)
    low, step = parts.min(1, keepdims=True), np.ptp(parts, axis=1, keepdims=True) / 15
    plain = np.round((parts - low) / step) * step + low - parts
    found = gguf.quants.dequantize(quantize(weight, Kind.Q4_K), Kind.Q4_K) - weight
    assert np.square(found).sum() < 0.98 * np.square(plain).sum()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda k: k.name)
def test_numbers_of_the_grid_are_kept(kind: Kind) -> None:
    """Blocks of random bytes, with sane scales, are numbers that a block can hold; written again they stay near."""
    weight = gguf.quants.dequantize(quantize(normal(), kind), kind)
    again = gguf.quants.dequantize(quantize(weight, kind), kind)
    assert np.linalg.norm(again - weight) < 0.3 * ERRORS[kind] * np.linalg.norm(weight)


def test_fallbacks_are_those_of_llama_cpp() -> None:
    assert fallback(Kind.Q4_K, 512) == Kind.Q4_K and fallback(Kind.Q4_K, 576) == Kind.Q5_0
    assert fallback(Kind.Q5_K, 384) == Kind.Q5_1 and fallback(Kind.Q6_K, 576) == Kind.Q8_0
    assert fallback(Kind.Q5_0, 36) == fallback(Kind.Q6_K, 36) == Kind.F16 and fallback(Kind.BF16, 36) == Kind.BF16


def config(**over: object) -> DecoderConfig:
    return llama_config(280, **{"hidden_size": 256, "ffn_width": 320, "layers": 8, "heads": 4, "kv_heads": 2, **over})


@pytest.mark.parametrize("kind", ["bf16", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "q4_k_m", "q5_k_m"])
def test_files_open_here_with_small_errors(kind: str, tmp_path: Path) -> None:
    model = random_decoder(config(layers=2), scale=0.05)
    written = write_gguf(model, byte_level(280), tmp_path / "m.gguf", kind=kind)  # type: ignore[arg-type]
    back = load_bundle(str(tmp_path / "m.gguf")).model
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            error = (back.get_parameter(name) - weight).norm() / weight.norm()
            assert error < (0.003 if kind == "bf16" else 0.08)
    # down has 320 columns, which 256 does not divide
    assert bool(written.narrow) == kind.startswith(("q4_k", "q5_k", "q6_k"))
    assert all("ffn_down" in key for key in written.narrow)


def test_a_mix_takes_six_bits_where_llama_cpp_does(tmp_path: Path) -> None:
    model = random_decoder(config(ffn_width=512), scale=0.05)
    types = write_gguf(model, byte_level(280), tmp_path / "m.gguf", kind="q4_k_m").types
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == types["blk.0.attn_q.weight"] == "Q4_K"
    six = [i for i in range(8) if types[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert six == [i for i in range(8) if types[f"blk.{i}.attn_v.weight"] == "Q6_K"] == [0, 3, 6, 7]
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.file_type"].parts[-1][0] == gguf.LlamaFileType.MOSTLY_Q4_K_M
