"""I24: no pickle is loaded; truncated, oversized and mismatched weights give one sentence that names file and key."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import CheckpointError, ModelError
from limbeck.formats.load import load_bundle
from tests.reference.checkpoints import edit_config, edit_weights, save

FILE = "model.safetensors"


def _refused(folder, kind, *words):
    with pytest.raises(kind) as caught:
        load_bundle(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


class _Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_alone_are_refused_by_name_and_never_loaded(name, tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    _refused(tmp_path, ModelError, name, "only pickled weights", "no pickle is ever loaded")


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / FILE).write_bytes(pickle.dumps(_Bomb()))
    _refused(tmp_path, CheckpointError, FILE)


def test_no_weights_at_all(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / FILE).unlink()
    _refused(tmp_path, ModelError, "no weights", str(tmp_path))


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_file(keep, tmp_path):
    save("gpt2", tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    _refused(tmp_path, CheckpointError, FILE, "truncated")


def test_file_longer_than_its_header_says(tmp_path):
    save("gpt2", tmp_path)
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(b"\0" * 64)
    _refused(tmp_path, CheckpointError, FILE)


def test_header_that_claims_terabytes(tmp_path):
    save("gpt2", tmp_path)
    header = json.dumps({"wte.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}})
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(header)) + header.encode())
    _refused(tmp_path, CheckpointError, FILE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_every_missing_key_is_named(family, tmp_path):
    save(family, tmp_path)
    tensors = load_file(tmp_path / FILE)
    for key in tensors:
        save_file({k: t for k, t in tensors.items() if k != key}, tmp_path / FILE)
        with pytest.raises(CheckpointError) as caught:
            load_bundle(str(tmp_path))
        assert FILE in str(caught.value) and "'" in str(caught.value)
        if "embed_tokens" not in key and "wte" not in key:  # without it the spelling itself is unknown
            assert key in str(caught.value)


@pytest.mark.parametrize("extra", ["transformer.h.2.ln_1.weight", "score.weight", "transformer.h.0.attn.c_attn.lora_a"])
def test_an_extra_key_is_named(extra, tmp_path):
    save("gpt2", tmp_path)
    edit_weights(tmp_path, lambda tensors: {**tensors, extra: torch.zeros(3)})
    _refused(tmp_path, CheckpointError, extra, FILE)


def test_a_shape_that_does_not_fit_names_both(tmp_path):
    save("gpt2", tmp_path)
    key = "transformer.h.1.mlp.c_fc.weight"
    edit_weights(tmp_path, lambda tensors: {**tensors, key: tensors[key].T.contiguous()})
    _refused(tmp_path, CheckpointError, key, FILE, "(128, 32)", "(32, 128)")


def test_a_dtype_that_is_no_float(tmp_path):
    save("llama", tmp_path)
    key = "model.norm.weight"
    edit_weights(tmp_path, lambda tensors: {**tensors, key: tensors[key].to(torch.int32)})
    _refused(tmp_path, CheckpointError, key, "I32", "float32")


def test_a_tied_head_that_differs_from_its_embedding(tmp_path):
    save("gpt2", tmp_path)
    edit_weights(tmp_path, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"] + 1})
    _refused(tmp_path, CheckpointError, "lm_head.weight", "tie_word_embeddings")


def test_a_tied_head_of_another_shape_or_dtype(tmp_path):
    save("gpt2", tmp_path)
    embedding = load_file(tmp_path / FILE)["transformer.wte.weight"]
    edit_weights(tmp_path, lambda t: {**t, "lm_head.weight": embedding[:-1].clone()})
    _refused(tmp_path, CheckpointError, "lm_head.weight", "tie_word_embeddings")
    edit_weights(tmp_path, lambda t: {**t, "lm_head.weight": embedding.int()})
    _refused(tmp_path, CheckpointError, "lm_head.weight", "I32")
    edit_weights(tmp_path, lambda t: {**t, "lm_head.weight": embedding.double()})
    assert load_bundle(str(tmp_path)).model.config.tied


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"n_layer": 2**30}, "n_layer"),
        ({"n_layer": 9_999}, "h.2."),
        ({"n_embd": 2**30, "n_head": 2**20}, "n_embd"),
        ({"n_embd": 2**16}, "wte.weight"),
        ({"vocab_size": 2**24}, "wte.weight"),
        ({"n_positions": 2**30}, "wpe.weight"),
        ({"n_layer": -1}, "n_layer = -1"),
        ({"n_embd": 0}, "n_embd = 0"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"n_head": True}, "n_head = True"),
        ({"n_embd": 1.5}, "n_embd = 1.5"),
        ({"n_head": 5}, "does not divide"),
        ({"n_layer": 10**300}, "n_layer"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": 0}, "norm_eps"),
        ({"resid_pdrop": 1.5}, "dropout"),
        ({"n_embd": ...}, "lacks 'n_embd'"),
        ({"n_positions": ...}, "lacks 'n_positions'"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(values, word, tmp_path):
    save("gpt2", tmp_path)
    edit_config(tmp_path, **values)
    _refused(tmp_path, ModelError, word, "config.json" if "weight" not in word else FILE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\0\0", "[" * 100_000])
def test_a_config_that_is_no_json_object(text, tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "config.json").write_text(text)
    _refused(tmp_path, ModelError, "config.json")


def test_a_config_that_is_no_text(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    _refused(tmp_path, ModelError, "config.json")


@pytest.fixture
def sharded(tmp_path):
    save("llama", tmp_path, max_shard_size="20KB")
    return tmp_path


def _edit_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def test_a_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    _refused(sharded, CheckpointError, shard.name, "missing")


def test_a_truncated_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    _refused(sharded, CheckpointError, shard.name, "truncated")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "pytorch_model-00001.bin", ".."])
def test_an_index_that_leads_elsewhere(name, sharded):
    _edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    _refused(sharded, CheckpointError, "index.json", name)


def test_an_index_that_places_a_key_wrongly(sharded):
    names = sorted(p.name for p in sharded.glob("model-*.safetensors"))
    _edit_index(sharded, lambda index: index["weight_map"].update({"model.embed_tokens.weight": names[-1]}))
    _refused(sharded, CheckpointError, "model.embed_tokens.weight", names[-1])


def test_an_index_without_a_map(sharded):
    _edit_index(sharded, lambda index: index.pop("weight_map"))
    _refused(sharded, CheckpointError, "weight_map")


def test_a_key_in_two_shards(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    key = next(iter(load_file(first)))
    save_file({**load_file(second), key: torch.zeros(2)}, second)
    _refused(sharded, CheckpointError, key, first.name, second.name)
