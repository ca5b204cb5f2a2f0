"""I11: logits equal transformers' on every layout and spelling, and our own slow decoder's in fp64."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.formats.load import load_bundle
from tests.reference.checkpoints import FAMILIES, VOCAB, hub_spelling, old_rope_spelling, save
from tests.reference.slow_decoder import slow_logits

IDS = torch.randint(0, VOCAB, (3, 40), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def _difference(model, theirs) -> float:
    return float((model(Batch.of_ids(IDS)) - theirs(IDS).logits).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32_logits_equal_transformers(name, tmp_path):
    theirs = save(name, tmp_path)
    model = load_bundle(str(tmp_path)).model
    assert _difference(model, theirs) < 1e-4
    unused = 2 * model.config.hidden_size if name.startswith("opt") else 0  # rows of its table of positions
    assert model.count_parameters() == sum(p.numel() for p in theirs.parameters()) - unused


@pytest.mark.parametrize("name", [n for n in FAMILIES if n.startswith(("gpt2", "opt"))])
def test_fp64_logits_equal_transformers_on_layer_norms(name, tmp_path):
    theirs = save(name, tmp_path, dtype=torch.float64)
    model = load_bundle(str(tmp_path), dtype=torch.float64).model
    assert _difference(model, theirs) < 1e-9


# what the slow decoder knows; further families are compared with transformers alone
_SLOW = [n for n in FAMILIES if n.startswith(("gpt2", "llama", "qwen2", "mistral"))]


@pytest.mark.parametrize("name", _SLOW)
def test_fp64_logits_equal_the_slow_decoder(name, tmp_path):
    save(name, tmp_path)
    model = load_bundle(str(tmp_path), dtype=torch.float64).model
    ids = IDS[:1, :16]
    expected = slow_logits(model.config, model.state_dict(), ids[0].tolist())
    with torch.no_grad():
        assert (model(Batch.of_ids(ids))[0] - expected).abs().max() < 1e-9


@pytest.mark.parametrize("head", [False, True])
def test_hub_spelling_of_gpt2_loads(head, tmp_path):
    theirs = save("gpt2", tmp_path)
    hub_spelling(tmp_path, head=head)
    assert _difference(load_bundle(str(tmp_path)).model, theirs) < 1e-4


def test_old_spelling_of_rope_scaling_loads(tmp_path):
    theirs = save("llama3-scaled", tmp_path)
    new = load_bundle(str(tmp_path)).model.config
    old_rope_spelling(tmp_path)
    model = load_bundle(str(tmp_path)).model
    assert model.config == new and model.config.rope.scaling is not None
    assert _difference(model, theirs) < 1e-4


def test_shards_load_as_one_file(tmp_path):
    theirs = save("llama", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert _difference(load_bundle(str(tmp_path)).model, theirs) < 1e-4


@pytest.mark.realdata
def test_stories260k_equals_transformers_and_its_reference_loss(real_data):
    from transformers import AutoModelForCausalLM

    folder = real_data / "stories260K"
    bundle = load_bundle(str(folder))
    text = (real_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")
    stories = [s.strip() for s in text.split("<|endoftext|>") if s.strip()][:100]
    total, count = 0.0, 0
    for i, story in enumerate(stories):
        ids = torch.tensor([[1, *bundle.tokenizer.encode(story)][:512]])
        with torch.no_grad():
            logits = bundle.model(Batch.of_ids(ids))
        if i == 0:
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            with torch.no_grad():
                assert (logits - theirs(ids).logits).abs().max() < 1e-4
        picked = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total, count = total - float(picked.double().sum()), count + ids.shape[1] - 1
    assert count == 36_664
    assert total / count == pytest.approx(1.30498, abs=1e-4)


@pytest.mark.realdata
def test_base_14m_equals_transformers(real_data):
    from transformers import AutoModelForCausalLM

    folder = real_data / "models" / "base-14m-gpt2"
    bundle = load_bundle(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([bundle.tokenizer.encode("Once upon a time there was a king who had three daughters. " * 8)])
    with torch.no_grad():
        assert (bundle.model(Batch.of_ids(ids)) - theirs(ids).logits).abs().max() < 1e-4
    assert bundle.model.count_parameters() == 13_989_888
    assert bundle.model.dtype == torch.float32 and bundle.generation["eos_token_id"] == 0


def test_the_list_of_ignored_keys_is_closed(tmp_path):
    """A weight whose name merely resembles an ignored buffer is not ignored."""
    from limbeck.formats.families.table import ignored

    taken = ["h.0.attn.bias", "transformer.h.11.attn.masked_bias"]
    kept = ["h.0.attn.c_attn.bias", "transformer.h.0.attn.c_proj.bias", "attn.bias", "h.0.mlp.bias", "xh.0.attn.bias"]
    assert all(ignored("gpt2", key) for key in taken) and not any(ignored("gpt2", key) for key in kept)
    assert ignored("llama", "model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not any(ignored("llama", key) for key in taken)
