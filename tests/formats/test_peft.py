"""Adapter folders that must be refused, each in one sentence that names file and key; equal logits are in I20."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import CheckpointError, StorageError, TechniqueError
from limbeck.formats.peft import load_adapter, save_adapter
from limbeck.formats.peft_names import places, shorten
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from tests.reference.techniques import BASES, base, logits, shake
from tests.reference.twins import gpt2_config, llama_config, random_decoder

A0 = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.fixture
def folder(tmp_path):
    lora = LoRA(rank=2, split=False, targets=("qkv", "down"))
    model = lora.apply(base("gpt2"))
    shake(model)
    save_adapter(model, lora, tmp_path / "adapter", "base")
    return tmp_path / "adapter"


def change_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(str(file))
    change(tensors)
    save_file(tensors, str(file))


def refused(folder, kind, message, model=None):
    model = base("gpt2") if model is None else model
    with pytest.raises(kind, match=message):
        load_adapter(model, folder)
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3': only LORA"),
        ({"use_dora": True}, "sets 'use_dora', which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "sets 'modules_to_save'"),
        ({"trainable_token_indices": [1]}, "sets 'trainable_token_indices'"),
        ({"some_new_variant": {"a": 1}}, "sets 'some_new_variant'"),
        ({"bias": "lora_only"}, r"trained biases too \(bias: lora_only\)"),
        ({"init_lora_weights": "pissa"}, "started by 'pissa', which changes the base"),
    ],
)
def test_other_kinds_of_adapters(folder, values, message):
    change_config(folder, **values)
    refused(folder, TechniqueError, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 3}, r"shapes \(2, 32\) and \(96, 2\), but its config says rank 3"),
        ({"rank_pattern": {"c_attn": 4}}, "its config says rank 4"),
        ({"lora_alpha": "much"}, "rank or alpha of 'much'"),
        ({"alpha_pattern": {"attn.c_attn": -1}}, "rank or alpha of -1"),
        ({"alpha_pattern": {"(": 1}}, "pattern '\\(', which is no regex"),
        ({"lora_dropout": 2}, "'dropout' in the adapter's config"),
    ],
)
def test_configs_that_do_not_go_with_their_tensors(folder, values, message):
    change_config(folder, **values)
    refused(folder, CheckpointError, message)


def test_an_adapter_for_another_base_names_key_and_both_shapes(folder):
    wider = random_decoder(gpt2_config(layers=4, hidden_size=64))
    refused(
        folder, CheckpointError, r"'base_model.*c_attn.lora_A.weight' .* has shape \(2, 32\).*needs \(rank, 64\)", wider
    )
    longer = random_decoder(gpt2_config(layers=4, ffn_width=96))
    refused(folder, CheckpointError, r"mlp.c_proj.lora_A.weight.*shape \(2, 128\).*needs \(rank, 96\)", longer)
    change_tensors(folder, lambda t: t.update({A0.replace("_A", "_B"): torch.zeros(64, 2)}))
    refused(folder, CheckpointError, r"lora_B.weight' .* has shape \(64, 2\).*needs \(96, rank\)")


def test_an_adapter_for_a_deeper_base_or_another_family(folder):
    refused(folder, CheckpointError, r"h.2.*has no such layer \(it has transformer.h.0.attn.c_attn to transformer.h.1",
            random_decoder(gpt2_config()))  # fmt: skip
    refused(folder, CheckpointError, "adapter is for another base model", base("llama"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A0), "has lora_B of 'transformer.h.0.attn.c_attn' without its other half"),
        (lambda t: t.clear(), "holds no adapter"),
        (lambda t: t.update({A0: torch.zeros(4)}), r"has shape \(4,\)"),
        (
            lambda t: t.update({"base_model.model.transformer.wte.lora_embedding_A": torch.zeros(2, 61)}),
            "lora_embedding_A', which is no part of a plain LoRA adapter",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.base_layer.weight": torch.zeros(61, 32)}),
            "'base_model.model.lm_head.base_layer.weight' .* is not the model's own head",
        ),
    ],
)
def test_tensors_that_are_missing_or_too_many(folder, change, message):
    change_tensors(folder, change)
    refused(folder, CheckpointError, message)


def test_files_that_are_missing_pickled_or_broken(folder):
    refused(folder.parent, CheckpointError, "holds no adapter: there is no adapter_config.json")
    tensors = folder / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-40])
    refused(folder, CheckpointError, "adapter_model.safetensors is truncated")
    tensors.unlink()
    refused(folder, CheckpointError, "lacks adapter_model.safetensors; beside adapter_config.json there is nothing")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    refused(folder, CheckpointError, "only adapter_model.bin, and no pickle is ever loaded")
    (folder / "adapter_config.json").write_text("{")
    tensors.write_bytes(whole)
    refused(folder, CheckpointError, "adapter_config.json cannot be read as JSON")


def test_spellings_of_older_and_bare_adapters_are_read(folder):
    wanted = logits(load_adapter(base("gpt2"), folder)[0])

    def respell(tensors):
        for key in list(tensors):
            old = key.replace("transformer.", "").replace("lora_A.weight", "base_layer.lora_A.default.weight")
            tensors[old] = tensors.pop(key)

    change_tensors(folder, respell)
    assert torch.equal(logits(load_adapter(base("gpt2"), folder)[0]), wanted)


def test_a_fresh_adapter_of_zeros_is_read_whole(tmp_path):
    lora = LoRA(rank=2)
    save_adapter(lora.apply(base("gpt2")), lora, tmp_path, "base")
    model, read = load_adapter(base("gpt2"), tmp_path)
    assert torch.equal(logits(model), logits(base("gpt2")))
    assert not read.split  # all columns of B are zero: nothing says that they were apart


def test_writing_refuses_what_peft_could_not_open(tmp_path):
    with pytest.raises(TechniqueError, match="has no LoRA adapter to write"):
        save_adapter(base("gpt2"), LoRA(), tmp_path / "x", "base")
    odd = random_decoder(llama_config(norm="layer"))
    with pytest.raises(TechniqueError, match="no Hugging Face family says this model"):
        save_adapter(LoRA(rank=2).apply(odd), LoRA(rank=2), tmp_path / "x", "base")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_adapter(LoRA(rank=2).apply(base("gpt2")), LoRA(rank=2), tmp_path / "file", "base")
    assert not (tmp_path / "x").exists()


def test_a_model_with_an_adapter_takes_no_second_one(folder):
    model = LoRA(targets="mlp").apply(base("gpt2"))
    with pytest.raises(TechniqueError, match="has an adapter already"):
        load_adapter(model, folder)


def test_writing_again_replaces_the_earlier_adapter(folder):
    lora = LoRA(rank=1, targets=("out",))
    save_adapter(lora.apply(base("gpt2")), lora, folder, "base")
    assert load_adapter(base("gpt2"), folder)[1].targets == ("attention.out",)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_places_cover_every_linear_layer_of_the_base():
    for config in BASES.values():
        model = random_decoder(config)
        rows = {}
        for place in places(config).values():
            rows[place.name] = rows.get(place.name, 0) + place.outputs
            assert place.inputs == model.get_submodule(place.name).in_features
            assert sum(r.stop - r.start for r in place.parts.values()) == place.outputs
        linears = {n: m for n, m in model.named_modules() if hasattr(m, "in_features")}
        assert rows == {n: m.out_features for n, m in linears.items()}


def test_shorten_names_once_what_all_blocks_share():
    known = ["h.0.a.x", "h.1.a.x", "h.0.b.x", "h.1.b.x", "lm_head"]
    got = shorten({"h.0.a.x": 1, "h.1.a.x": 1, "h.0.b.x": 2, "lm_head": 3}, dict.fromkeys(known))
    assert got == {"a.x": 1, "h.0.b.x": 2, "lm_head": 3}
