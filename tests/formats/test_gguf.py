from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError, StorageError
from limbeck.formats.gguf import architecture, blocks, weight_error, write_gguf
from limbeck.formats.gguf_read import read_gguf
from limbeck.formats.load import save_bundle
from limbeck.kernels.packed import dispatch
from limbeck.model.decoder import Decoder
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level
from tests.reference.tokenizers import llama_like

SHAPE: dict[str, Any] = {"hidden_size": 64, "ffn_width": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2-untied": {"tied": False},
    "llama": {**MODERN, "tied": False},
    "llama-tied-wide-heads": {**MODERN, "head_dim": 24},
    "qwen2": {**MODERN, "qkv_bias": True},
    "llama-biases": {**MODERN, "qkv_bias": True, "out_bias": True, "ffn_bias": True},
}
HUB = {"gpt2": "transformer.", "llama": "model."}


def small(name: str, **over: Any) -> Decoder:
    return decoder(**{**SHAPE, **FAMILIES[name], **over})


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def converted(model: Decoder, folder: Path) -> dict[str, np.ndarray]:
    """What llama.cpp's converter makes of the Hugging Face folder: its names from gguf's table, its permutation."""
    save_bundle(model, byte_level(), folder, layout="huggingface")
    arch, c = architecture(model.config), model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.layers)
    out = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        if arch == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            array = array.T
        for part, heads in (("q_proj", c.heads), ("k_proj", c.kv_heads)):
            if part in key:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        out[name] = np.ascontiguousarray(array)
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_those_of_llama_cpps_converter(tmp_path: Path, name: str) -> None:
    model = small(name)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="f32")
    assert written.exact and set(written.types.values()) == {"F32"}
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    wanted = converted(model, tmp_path / "hf")
    assert {t.name for t in reader.tensors} == wanted.keys()
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, wanted[tensor.name]), tensor.name
        assert tensor.shape.tolist() == list(wanted[tensor.name].shape)[::-1]  # ggml counts from the inside
    assert ("output.weight" in wanted) is not model.config.tied


@pytest.mark.parametrize("name", ["gpt2", "llama-tied-wide-heads"])
def test_every_key(tmp_path: Path, name: str) -> None:
    model = small(name)
    write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="q8_0", name="toy")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    arch, c = architecture(model.config), model.config
    assert value(reader, "GGUF.version") == 3
    settings = {
        "general.architecture": arch, "general.name": "toy", "general.type": "model", "general.file_type": 7,
        "general.quantization_version": 2, f"{arch}.vocab_size": 288, f"{arch}.context_length": 32,
        f"{arch}.embedding_length": 64, f"{arch}.block_count": 2, f"{arch}.feed_forward_length": 96,
        f"{arch}.attention.head_count": 4, f"{arch}.attention.head_count_kv": c.kv_heads,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    norm = "layer_norm_epsilon" if arch == "gpt2" else "layer_norm_rms_epsilon"
    assert value(reader, f"{arch}.attention.{norm}") == pytest.approx(c.norm_eps)
    if arch == "llama":
        settings |= {
            "llama.attention.key_length": 24, "llama.attention.value_length": 24, "llama.rope.dimension_count": 24,
            "llama.rope.freq_base": 10000.0,
        }  # fmt: skip
    for key, wanted in settings.items():
        assert value(reader, key) == wanted, key
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
    ours = {key for key in reader.fields if not key.startswith("GGUF.")}
    assert ours == settings.keys() | lists | {f"{arch}.attention.{norm}"}
    assert len(value(reader, "tokenizer.ggml.tokens")) == 288


def test_every_key_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(llama_like(tmp_path))
    write_gguf(small("llama", vocab_size=310), tokenizer, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    wanted = {
        "model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "padding_token_id": 3, "add_bos_token": True, "add_eos_token": False, "add_space_prefix": True,
    }  # fmt: skip
    for key, held in wanted.items():
        assert value(reader, f"tokenizer.ggml.{key}") == held, key
    lists = {key: value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")}
    assert {len(held) for held in lists.values()} == {310}
    first, later = (lists["scores"][lists["tokens"].index(piece)] for piece in ("\u2581t", "\u2581the"))
    assert first == 0 and later == -2 and lists["scores"][lists["tokens"].index("z")] == -8
    ours = {key for key in reader.fields if key.startswith("tokenizer.")}
    assert ours == {f"tokenizer.ggml.{key}" for key in (*wanted, *lists)}


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_matrices_are_rounded_as_gguf_rounds_them(tmp_path: Path, name: str, kind: Any) -> None:
    model = small(name)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind=kind)
    wanted, wide = converted(model, tmp_path / "hf"), gguf.GGMLQuantizationType[kind.upper()]
    assert not written.exact and written.copied == written.rounded_twice == written.unfit == ()
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        plain = "norm" in tensor.name or tensor.name.endswith(".bias") or tensor.name == "position_embd.weight"
        assert tensor.tensor_type == (gguf.GGMLQuantizationType.F32 if plain else wide)
        theirs = gguf.quants.quantize(wanted[tensor.name], tensor.tensor_type)
        assert np.array_equal(tensor.data.view(np.uint8), theirs.view(np.uint8)), tensor.name


@pytest.mark.parametrize("grid", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_codes_go_over_bit_for_bit(tmp_path: Path, name: str, grid: Any) -> None:
    """I20: what was rounded on a GGUF grid is, in the file, what the library makes of the full weight."""
    full, model = small(name), small(name)
    model.load_state_dict(full.state_dict())
    wanted = converted(full, tmp_path / "hf")
    RTN(grid=Grid(format=grid)).apply(model)
    for kind in ("auto", grid):
        written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind=kind)
        assert written.exact and set(written.types[key] for key in written.copied) == {grid.upper()}
        tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        for key in written.copied:
            theirs = gguf.quants.quantize(wanted[key], tensors[key].tensor_type)
            assert np.array_equal(tensors[key].data, theirs), key
        back = read_gguf(tmp_path / "m.gguf").model
        assert weight_error(model, back) == 0
        assert torch.equal(_logits(model), _logits(back))


def _logits(model: Decoder) -> Tensor:
    with torch.no_grad(), dispatch("reference"):
        out: Tensor = model(Batch.of_ids(torch.arange(24).view(2, 12)))
    return out


@pytest.mark.parametrize(
    ("grid", "kind"),
    [
        (Grid(format="int4", group_size=32), "Q4_0"),
        (Grid(format="int4", group_size=64), "Q4_0"),
        (Grid(format="int4", granularity="channel", scale_dtype="fp16"), "Q4_0"),
        (Grid(format="int4", granularity="tensor", scale_dtype="fp16"), "Q4_0"),
        (Grid(format="int4", group_size=64, symmetric=False), "Q4_1"),
        (Grid(format="int8", group_size=128), "Q8_0"),
    ],
)
def test_any_grid_that_a_block_can_say_is_kept(grid: Grid, kind: str) -> None:
    weight = torch.randn(5, 160)
    codes = encode(weight, grid)
    found = blocks(codes)
    assert found is not None and found[1].name == kind
    assert np.array_equal(gguf.quants.dequantize(*found), codes.decode().numpy())


@pytest.mark.parametrize(
    "grid",
    [
        Grid(format="int8"), Grid(format="int8", group_size=32, symmetric=False), Grid(format="fp16"),
        Grid(format="int4", group_size=32, scale_dtype="fp32"), Grid(format="fp8_e4m3"),
    ],
)  # fmt: skip
def test_a_grid_that_no_block_can_say_is_none(grid: Grid) -> None:
    assert blocks(encode(torch.randn(3, 64), grid)) is None
    assert blocks(encode(torch.randn(3, 40), Grid(format="q4_0"))) is None


def test_gptq_on_a_gguf_grid_survives(tmp_path: Path) -> None:
    model = small("llama")
    batches = [Batch.of_ids(torch.randint(0, 280, (8, 24), generator=torch.Generator().manual_seed(1)))]
    GPTQ(grid=Grid(format="q4_0")).apply(model, batches)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf")
    assert written.exact and weight_error(model, read_gguf(tmp_path / "m.gguf").model) == 0


def test_other_grids_are_rounded_once_more_and_said(tmp_path: Path) -> None:
    model = small("gpt2")
    RTN(bits=8, overrides={"positions": Grid(format="int8")}).apply(model)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="q4_0")
    assert len(written.rounded_twice) == 9 and not written.copied and not written.exact
    assert write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="f32").rounded_twice == ()
    assert weight_error(model, read_gguf(tmp_path / "m.gguf").model) == 0


def test_columns_that_do_not_divide_are_f16_and_said(tmp_path: Path) -> None:
    model = small("gpt2", hidden_size=48, ffn_width=96)
    written = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="q8_0")
    assert written.types["blk.0.ffn_down.weight"] == "Q8_0" and written.types["blk.0.ffn_up.weight"] == "F16"
    assert "blk.0.ffn_up.weight" in written.unfit and len(written.unfit) == 7
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert value(reader, "general.file_type") == 1  # most are F16
    RTN(grid=Grid(format="q8_0")).apply(model)
    for kind in ("auto", "q8_0"):
        again = write_gguf(model, byte_level(), tmp_path / "m.gguf", kind=kind)
        assert again.unfit == written.unfit and len(again.copied) == 2 and again.rounded_twice == ()


def test_llama_3s_slowed_frequencies(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 16}
    model = small("llama", rope={"theta": 500.0, "scaling": scaling})
    write_gguf(model, byte_level(), tmp_path / "m.gguf")
    factors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["rope_freqs.weight"].data
    wanted = []  # as in the converter's generate_extra_tensors
    for i in range(0, 16, 2):
        wavelength = 2 * np.pi * 500.0 ** (i / 16)
        if wavelength < 16 / 4.0:
            wanted.append(1.0)
        elif wavelength > 16 / 1.0:
            wanted.append(8.0)
        else:
            smooth = (16 / wavelength - 1.0) / (4.0 - 1.0)
            wanted.append(1 / ((1 - smooth) / 8.0 + smooth))
    np.testing.assert_allclose(factors, wanted, rtol=1e-6)
    back = read_gguf(tmp_path / "m.gguf").model
    assert weight_error(model, back) < 1e-3


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"activation": "gelu"}, "activation gelu"),
        ({"norm": "rms"}, "rms norm in the gpt2 layout"),
        ({**MODERN, "activation": "gelu_tanh"}, "activation gelu_tanh"),
        ({**MODERN, "pattern": {"kind": "sliding", "window": 8}}, "sliding windows"),
        ({**MODERN, "pattern": {"kind": "log_sparse", "window": 8}}, "patterns"),
    ],
)
def test_a_model_that_no_architecture_computes_is_refused(tmp_path: Path, over: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        write_gguf(decoder(**{**SHAPE, **over}), byte_level(), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    model = LoRA(rank=2).apply(small("gpt2"))
    with pytest.raises(ModelError, match="which GGUF has no tensors for: merge or drop it first"):
        write_gguf(model, byte_level(), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_f16_cannot_hold(tmp_path: Path) -> None:
    model = small("gpt2")
    with torch.no_grad():
        model.blocks[0].ffn.up.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight holds numbers that F16 cannot"):
        write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="f16")
    write_gguf(model, byte_level(), tmp_path / "m.gguf", kind="f32")


def test_a_refused_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(small("gpt2"), byte_level(), file)
    before = file.read_bytes()

    def full(self: gguf.GGUFWriter, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_gguf(small("llama"), byte_level(), file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
