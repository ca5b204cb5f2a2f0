"""GGUF files as models: what our own writer, transformers and the published file say of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data.batch import Batch
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import CheckpointError, LimbeckError, ModelError
from limbeck.formats.gguf import write_gguf
from limbeck.formats.gguf_file import GgufFile
from limbeck.formats.gguf_read import read_gguf, stored_kinds
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.model.decoder import Decoder
from limbeck.techniques.rtn import RTN
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level
from tests.reference.spm import spm_encode
from tests.reference.tokenizers import llama_like

SHAPE: dict[str, Any] = {"hidden_size": 64, "ffn_width": 96}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2-untied": {"tied": False},
    "llama": {**MODERN, "tied": False},
    "llama-tied-wide-heads": {**MODERN, "head_dim": 24},
    "qwen2": {**MODERN, "qkv_bias": True},
    "llama-biases": {**MODERN, "qkv_bias": True, "out_bias": True, "ffn_bias": True},
    "llama3": {**MODERN, "rope": {"theta": 5e5, "scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 32}}},
}  # fmt: skip
SMOLLM = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"


def small(name: str, **over: Any) -> Decoder:
    return decoder(**{**SHAPE, **MODELS[name], **over})


def written(folder: Path, model: Decoder, tokenizer: Tokenizer | None = None, **options: Any) -> Path:
    write_gguf(model, tokenizer or byte_level(), folder / "m.gguf", **options)
    return folder / "m.gguf"


def probe(rows: int) -> Batch:
    return Batch.of_ids(torch.randint(0, rows, (2, 11), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", MODELS)
def test_what_was_written_reads_back_as_the_same_model(tmp_path: Path, name: str) -> None:
    model = small(name)
    file = written(tmp_path, model, kind="f32")
    bundle = load_bundle(str(file))
    expected = model.config.model_copy(update={"dropout": bundle.model.config.dropout})
    assert bundle.model.config == expected
    assert bundle.folder == file and bundle.deployed_specs == ()
    with torch.no_grad():
        batch = probe(model.config.vocab_size)
        assert torch.equal(bundle.model(batch), model(batch))
    assert (bundle.model.head.weight is bundle.model.embed.weight) is model.config.tied


def test_transformers_reads_the_same_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = written(tmp_path, small("llama"), kind="q8_0")
    ours = load_bundle(str(file)).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    batch = probe(ours.config.vocab_size)
    with torch.no_grad():
        assert torch.allclose(ours(batch), theirs(batch.ids).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["F64", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_type_is_read_in_pieces_of_any_size(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).normal(size=(5, 7, 64)).astype(np.float32)
    data = numbers.astype(np.float64) if kind == "F64" else gguf.quants.quantize(numbers, Kind[kind])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = data if kind == "F64" else gguf.quants.dequantize(data, Kind[kind])
    for chunk in (1, 200, 1 << 20):
        monkeypatch.setattr("limbeck.formats.gguf_file._CHUNK", chunk)
        file = GgufFile(tmp_path / "m.gguf")
        assert file.tensors["x"].shape == (5, 7, 64)
        found = np.concatenate([rows for _, rows in file.numbers("x")])
        assert np.array_equal(found.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("grid", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_codes_are_kept_bit_for_bit(tmp_path: Path, name: str, grid: str) -> None:
    model, _ = RTN(grid={"format": grid}).convert(RTN(grid={"format": grid}).apply(small(name)))
    file = written(tmp_path, model)
    bundle = load_bundle(str(file), keep_codes=True)
    kept, made = bundle.model.state_dict(), model.state_dict()
    assert kept.keys() == made.keys()
    for key, value in made.items():
        assert torch.equal(kept[key].view(torch.uint8), value.view(torch.uint8)), key
    save_bundle(bundle.model, bundle.tokenizer, tmp_path / "native", deployed_specs=bundle.deployed_specs)
    again = load_bundle(str(tmp_path / "native")).model.state_dict()
    assert all(torch.equal(again[k].view(torch.uint8), v.view(torch.uint8)) for k, v in kept.items())


def test_a_matrix_in_a_foreign_type_is_decoded_beside_codes(tmp_path: Path) -> None:
    plan = RTN(grid={"format": "q8_0"}, overrides={"blocks.0.ffn.up": None})
    model, _ = plan.convert(plan.apply(small("llama")))
    bundle = load_bundle(str(written(tmp_path, model)), keep_codes=True)
    assert bundle.model.blocks[0].ffn.up.weight.dtype == torch.float32
    assert bundle.model.state_dict().keys() == model.state_dict().keys()


def test_keep_codes_is_of_files_alone(tmp_path: Path) -> None:
    save_bundle(small("llama"), byte_level(), tmp_path / "m")
    with pytest.raises(ModelError, match="leave keep_codes out"):
        load_bundle(str(tmp_path / "m"), keep_codes=True)


def test_template_and_every_end_id_come_back(tmp_path: Path) -> None:
    tokenizer = byte_level().with_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    generation = {"eos_token_id": [0, 5, 7], "temperature": 0.6}
    tokenizer = tokenizer.with_ends([0, 5, 7])
    result = write_gguf(small("gpt2"), tokenizer, tmp_path / "m.gguf", generation=generation)
    assert len(result.lost) == 1 and "temperature" in result.lost[0]
    bundle = load_bundle(str(tmp_path / "m.gguf"))
    assert bundle.tokenizer.chat_template == tokenizer.chat_template
    assert bundle.generation["eos_token_id"] == [0, 5, 7]
    result = write_gguf(small("gpt2"), tokenizer.with_ends([5, 7, 9, 11]), tmp_path / "n.gguf")
    assert "9, 11" in result.lost[0]


def test_sentencepiece_by_scores(tmp_path: Path) -> None:
    source = Tokenizer.load(llama_like(tmp_path))
    file = written(tmp_path, small("llama", vocab_size=source.vocab_size), source)
    tokenizer = load_bundle(str(file)).tokenizer
    values = GgufFile(file).values
    pieces, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"].tolist()
    for text in ("the once", "  once the  the", "on the, once? the: \u00e9t\u00e9\n", "", "zebra the"):
        assert tokenizer.encode(text) == source.encode(text) == spm_encode(text, pieces, scores, True)
        assert tokenizer.decode(tokenizer.encode(text)) == source.decode(source.encode(text))
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (source.eos_id, source.bos_id, source.pad_id)
    assert tokenizer.begins_with_bos == source.begins_with_bos


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_cut_alike(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "m.gguf").is_file():
        written(folder, small("gpt2", vocab_size=280), byte_level())
        _CUT["file"] = load_bundle(str(folder / "m.gguf")).tokenizer
    assert _CUT["file"].encode(text) == byte_level().encode(text)


_CUT: dict[str, Tokenizer] = {}


# ---- files that are not what they claim


def header(*, tensors: int = 0, entries: int = 0, version: int = 3, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "a zip": (b"PK\x03\x04" + bytes(40), "no GGUF file"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "version 1": (header(version=1), "version 1"),
    "a million million tensors": (header(tensors=10**12, body=bytes(100)), "1,000,000,000,000 tensors"),
    "a million million entries": (header(entries=10**12, body=bytes(100)), "metadata entries"),
    "a key without end": (header(entries=1, body=struct.pack("<Q", 2**62) + bytes(9)), "a key of the metadata"),
    "an array without end": (
        header(entries=1, body=text("a") + struct.pack("<IIQ", 9, 5, 2**60)), "numbers in 'a'"),
    "strings without end": (header(entries=1, body=text("a") + struct.pack("<IIQ", 9, 8, 2**60)), "strings in 'a'"),
    "arrays of arrays": (
        header(entries=1, body=text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)), "array of type 9"),
    "an unknown type of value": (header(entries=1, body=text("a") + struct.pack("<IQ", 99, 0)), "unknown type 99"),
    "a key twice": (header(entries=2, body=(text("a") + struct.pack("<IB", 0, 1)) * 2), "'a' twice"),
    "an unknown type of tensor": (header(tensors=1, body=tensor("x", (32,), 999, 0) + bytes(200)), "number 999"),
    "a removed type": (header(tensors=1, body=tensor("x", (32,), 4, 0) + bytes(200)), "does not decode"),
    "seven dimensions": (header(tensors=1, body=tensor("x", (1,) * 7, 0, 0) + bytes(200)), "7 dimensions"),
    "no columns": (header(tensors=1, body=tensor("x", (0,), 0, 0) + bytes(200)), "no tensor has"),
    "a petabyte": (header(tensors=1, body=tensor("x", (2**30, 2**20), 0, 0) + bytes(200)), "no tensor has"),
    "beyond the end": (header(tensors=1, body=tensor("x", (2**20,), 0, 0) + bytes(200)), "truncated: 'x'"),
    "an offset far away": (header(tensors=1, body=tensor("x", (8,), 0, 2**62) + bytes(200)), "truncated: 'x'"),
    "an odd offset": (header(tensors=1, body=tensor("x", (8,), 0, 3) + bytes(200)), "no multiple of 32"),
    "half a block": (header(tensors=1, body=tensor("x", (40,), 8, 0) + bytes(200)), "no multiple of 32"),
    "two in one place": (
        header(tensors=2, body=tensor("x", (8,), 0, 0) + tensor("y", (8,), 0, 0) + bytes(200)), "over another"),
    "a name twice": (
        header(tensors=2, body=tensor("x", (8,), 0, 0) + tensor("x", (8,), 0, 32) + bytes(200)), "'x' twice"),
    "an alignment of 7": (
        header(entries=1, body=text("general.alignment") + struct.pack("<II", 4, 7)), "general.alignment = 7"),
    "no architecture": (header(body=bytes(64)), "architecture None"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    data, words = BROKEN[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises((CheckpointError, ModelError)) as caught:
        load_bundle(str(tmp_path / "m.gguf"))
    message = str(caught.value)
    assert words in message and str(tmp_path / "m.gguf") in message and "\n" not in message, message


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read_in_bounded_memory(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed or cut anywhere in the header: an error of ours, or a model; nothing large is allocated."""
    import tracemalloc

    file = tmp_path / "whole.gguf"
    if not file.is_file():
        write_gguf(small("llama", layers=1), byte_level(), file, kind="q8_0")
        load_bundle(str(file))  # imports what loading needs, which is not to be counted
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content) - 9, 12_000)))
        change = data.draw(st.sampled_from(["byte", "count", "cut"]))
        if change == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "count":
            content[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1])))
        else:
            del content[at:]
            content += bytes(9)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    tracemalloc.start()
    try:
        load_bundle(str(broken))
    except LimbeckError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50e6, peak


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.add_key_length(24), "another width"),
        (lambda w: w.add_rope_dimension_count(8), "rotates 8"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
        (lambda w: w.add_expert_count(4), "mixture of experts"),
        (lambda w: w.add_block_count(10**6), "layers"),
        (lambda w: w.add_context_length(0), "max_position_embeddings"),
        (lambda w: w.add_uint16("split.count", 3), "gguf-split"),
        (lambda w: w.add_tokenizer_pre("viking"), "viking"),
        (lambda w: w.add_tokenizer_model("bert"), "'bert'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    file = written(tmp_path, small("llama", tied=True), kind="f32")
    old = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "n.gguf", "llama")
    writer.kv_data[0].update()
    change(writer)
    for field in old.fields.values():
        if field.name not in writer.kv_data[0] and not field.name.startswith("GGUF."):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    for t in old.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((ModelError, CheckpointError), match=words):
        read_gguf(tmp_path / "n.gguf")


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no \.gguf"):
        load_bundle(str(tmp_path / "m.bin"))


def test_stored_kinds(tmp_path: Path) -> None:
    assert stored_kinds(written(tmp_path, small("llama"), kind="q8_0")) == {"Q8_0": 16, "F32": 5}


# ---- the published file


def windows(ids: list[int], count: int, length: int) -> Batch:
    return Batch.of_ids(torch.tensor(ids[: count * length]).view(count, length))


def nll(model: Decoder, batch: Batch) -> float:
    with torch.no_grad():
        logits = model(batch)[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="sum"))


@pytest.mark.realdata
def test_smollm2_says_what_transformers_says(real_data: Path) -> None:
    """The figures of the data's README: ids, greedy continuation, five highest logits."""
    bundle = load_bundle(str(real_data / SMOLLM))
    ids = bundle.tokenizer.encode("Once upon a time")
    assert ids == [6403, 1980, 253, 655]
    assert bundle.generation["eos_token_id"] == 2 and "<|im_start|>" in (bundle.tokenizer.chat_template or "")
    with torch.no_grad():
        best = bundle.model(Batch.of_ids(torch.tensor([ids])))[0, -1].topk(5)
        assert best.indices.tolist() == [28, 281, 665, 260, 253]
        assert torch.allclose(best.values, torch.tensor([18.1420, 14.0825, 13.3672, 12.9355, 12.9280]), atol=1e-4)
        for wanted in (28, 260, 2240, 282, 23324, 27108, 436, 253, 15114, 39228, 28, 351):
            found = int(bundle.model(Batch.of_ids(torch.tensor([ids])))[0, -1].argmax())
            assert found == wanted
            ids.append(found)


@pytest.mark.realdata
@pytest.mark.slow
def test_reference_losses_of_smollm2(real_data: Path, tmp_path: Path) -> None:
    """The reference losses through our reader, and through the Hugging Face folder written from it, to 1e-4."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = load_bundle(str(real_data / SMOLLM))
    text = (real_data / "wikitext2/wiki.test.raw").read_text(encoding="utf-8")
    ids = bundle.tokenizer.encode(text)
    assert len(ids) == 301_948
    total = sum(nll(bundle.model, windows(ids[i * 512 :], 1, 512)) for i in range(16))
    assert total / 8176 == pytest.approx(3.585642, abs=1e-4)
    stories = [d.strip() for d in (real_data / "tinystories/valid.txt").read_text().split("<|endoftext|>")]
    rows = [bundle.tokenizer.encode(d) for d in stories if d][:20]
    losses = [nll(bundle.model, Batch.of_ids(torch.tensor([row]))) for row in rows]
    assert sum(len(row) - 1 for row in rows) == 3702
    assert sum(losses) / 3702 == pytest.approx(2.251301, abs=1e-4)
    save_bundle(bundle.model, bundle.tokenizer, tmp_path / "hf", generation=bundle.generation, layout="huggingface")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        one = windows(ids, 1, 512)
        ours, logits = bundle.model(one), theirs(one.ids).logits
    # measured: 1.3e-6 of the norm and 2.2e-4 at most, of logits up to 38; either program in fp32 is 1.1e-6 of the norm
    # and 1.3e-4 from itself in fp64
    assert float((ours - logits).norm() / ours.norm()) < 5e-6
    assert float((ours - logits).abs().max()) < 1e-3
    losses = [torch.nn.functional.cross_entropy(x[0, :-1], one.ids[0, 1:]) for x in (ours, logits)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-5)
    again = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert again(text[:20_000])["input_ids"] == bundle.tokenizer.encode(text[:20_000])


@pytest.mark.realdata
@pytest.mark.slow
def test_loading_takes_little_more_than_what_is_kept(real_data: Path) -> None:
    """Peak memory of loading at most 1.2 times what is kept, in a fresh process, floats and codes."""
    import subprocess
    import sys

    script = """
import sys, torch
from limbeck.formats.load import load_bundle
from limbeck.measure.footprint import peak_memory
load_bundle(sys.argv[1], keep_codes=True)  # what torch and the tokenizer's library keep for themselves
with peak_memory() as loading:
    bundle = load_bundle(sys.argv[2], keep_codes=sys.argv[3] == "codes")
kept = bundle.model.count_bytes()
print(loading.grown_bytes, kept)
"""
    for form in ("floats", "codes"):
        args = [sys.executable, "-c", script, str(real_data / SMOLLM), str(real_data / SMOLLM), form]
        done = subprocess.run(args, capture_output=True, text=True, check=True)
        grown, kept = map(int, done.stdout.split())
        assert grown <= 1.2 * kept, (form, grown, kept)
