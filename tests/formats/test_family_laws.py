"""One law-set over the table of families: each opens, equals transformers, writes back, decodes and trains."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch, collate
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.step import CompiledStep
from limbeck.errors import ModelError
from limbeck.formats.families.table import FAMILIES, HARMLESS, config_from, config_to, family_of
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.formats.peft import load_adapter, save_adapter
from limbeck.formats.settings import ConfigReader
from limbeck.kernels import native
from limbeck.model.cache import KVCache
from limbeck.model.decoder import Decoder
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from tests.reference.checkpoints import FAMILIES as CHECKPOINTS
from tests.reference.checkpoints import VOCAB, save
from tests.reference.small_tokenizer import byte_level
from tests.reference.techniques import plain_batch, shake

IDS = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(11))


def opened(name: str, folder: Path) -> tuple[Decoder, torch.nn.Module]:
    theirs = save(name, folder)
    return load_bundle(str(folder)).model, theirs


def examples(rows: list[Tensor]) -> list:
    from limbeck.data.batch import Example

    return [
        [Example(i, str(i), r.int().numpy(), torch.ones(len(r), dtype=torch.bool).numpy())] for i, r in enumerate(rows)
    ]


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_left_padding_equals_transformers(name: str, tmp_path: Path) -> None:
    model, theirs = opened(name, tmp_path)
    rows = [IDS[0, :21], IDS[1, :13]]
    batch = collate(examples(rows), left=True)
    mask = (batch.document_ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found, wanted = model(batch), theirs(batch.ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    assert (found - wanted)[real].abs().max() < 1e-4
    for i, row in enumerate([] if name in ("rope-long", "rope-dynamic") else rows):  # which depend on the longest row
        alone = model(Batch.of_ids(row[None]))[0]
        assert (found[i, -len(row) :] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_cached_decoding_equals_transformers(name: str, tmp_path: Path) -> None:
    model, theirs = opened(name, tmp_path)
    cache, past, found, wanted = KVCache(model.config, 2, 40), None, [], []
    for chunk in IDS.split([12, *[1] * 28], dim=1):
        found.append(model(Batch.of_ids(chunk), cache=cache))
        out = theirs(chunk, past_key_values=past, use_cache=True)
        past = out.past_key_values
        wanted.append(out.logits)
    assert (torch.cat(found, 1) - torch.cat(wanted, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_what_is_written_back_opens_in_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = opened(name, tmp_path / "theirs")
    family, why = family_of(model.config)
    assert family is not None, why
    assert config_from(config_to(family, model.config), "config.json") == (family, model.config)
    save_bundle(model, byte_level(VOCAB), tmp_path / "ours", layout="huggingface")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert (again(IDS).logits - model(Batch.of_ids(IDS))).abs().max() < 1e-4
    save_bundle(model, byte_level(VOCAB), tmp_path / "native", layout="native")
    assert torch.equal(load_bundle(str(tmp_path / "native")).model(Batch.of_ids(IDS)), model(Batch.of_ids(IDS)))


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_the_compiled_step_serves_or_steps_aside(name: str, tmp_path: Path) -> None:
    if native.load() is None:
        pytest.skip("no compiler")
    model, _ = opened(name, tmp_path)
    cache, other = KVCache(model.config, 2, 40), KVCache(model.config, 2, 40)
    step = CompiledStep.of(model, cache)
    served = name.startswith(("gpt2", "llama", "mistral", "qwen2", "opt", "rope", "gpt_neox-serial"))
    assert (step is not None) == served
    if step is None:
        return
    for part in (IDS[:, :12], *IDS[:, 12:16].split(1, dim=1)):
        wanted = model(Batch.of_ids(part), cache=other)
        found = model(Batch.of_ids(part), cache=cache) if part.shape[1] > 1 else step.run(part.contiguous())
        assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_parameter_learns_and_adapters_merge(name: str, tmp_path: Path) -> None:
    model, _ = opened(name, tmp_path)
    model.train()
    model(plain_batch()).logsumexp(-1).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent in ([], ["positions.weight"])
    model.zero_grad()
    lora = LoRA(rank=2, targets="all")
    adapted = lora.apply(copy.deepcopy(model).eval())
    with torch.no_grad():
        assert (adapted(Batch.of_ids(IDS)) - model.eval()(Batch.of_ids(IDS))).abs().max() < 1e-5
    shake(adapted)
    adapted(plain_batch()).sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        before = adapted(Batch.of_ids(IDS))
        merged, _ = lora.convert(adapted)
        assert (merged(Batch.of_ids(IDS)) - before).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_adapters_open_in_peft(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, theirs = opened(name, tmp_path / "base")
    lora = LoRA(rank=2)
    adapted = lora.apply(copy.deepcopy(model).eval())
    shake(adapted)
    save_adapter(adapted, lora, tmp_path / "adapter", str(tmp_path / "base"))
    peft = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    wanted = adapted(Batch.of_ids(IDS))
    assert (peft(input_ids=IDS).logits - wanted).abs().max() < 1e-4
    back, _ = load_adapter(model, tmp_path / "adapter")
    assert (back.eval()(Batch.of_ids(IDS)) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_every_family_quantizes(name: str, tmp_path: Path) -> None:
    model, _ = opened(name, tmp_path / "base")
    before = model(Batch.of_ids(IDS))
    made, left = RTN(bits=8).convert(RTN(bits=8).apply(model))
    assert left is not None
    after = made(Batch.of_ids(IDS))
    error = (after - before).norm() / before.norm()  # 0.01 to 0.10 (gemma3-capped) where activations are rounded too
    assert 0 < error < 0.15
    save_bundle(made, byte_level(VOCAB), tmp_path / "q", deployed_specs=(left,))
    assert torch.equal(load_bundle(str(tmp_path / "q")).model(Batch.of_ids(IDS)), after)


# ---- I38: no key of a family's config class is ignored


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_the_config_class_is_read_or_harmless(name: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name)
    values = {k: v for k, v in config.to_dict().items() if k != "rope_parameters"}
    s = ConfigReader(values, "config.json")
    FAMILIES[name].read(s)
    ignored = values.keys() - s.read - HARMLESS - FAMILIES[name].harmless - {"is_encoder_decoder"}
    assert not ignored, f"{name} has keys that nobody looked at: {sorted(ignored)}"
    assert not s.read & FAMILIES[name].harmless - {"attention_dropout"}


@pytest.mark.parametrize(
    ("name", "over", "words"),
    [
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "no sliding_window"),
        ("llama", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("llama", {"use_parallel_residual": True}, "use_parallel_residual"),
        ("mistral", {"layer_types": ["chunked", "full_attention"]}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both ways"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "does not compute"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 4}, "word_embed_proj_dim"),
        ("opt", {"num_key_value_heads": 1}, "num_key_value_heads"),
        ("gpt_neox", {"rotary_pct": 0.01}, "rotates 0 columns"),
        ("gpt_neo", {"attention_types": [[["global", "strided"], 1]]}, "attention_types"),
        ("gpt_neo", {"attention_layers": ["local", "local"]}, "attention_layers"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused(name: str, over: dict, words: str) -> None:
    values = {
        "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
        "opt": {"num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 8},
    }.get(name, {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8})
    if name == "gpt_neox":
        values |= {"rotary_pct": 0.5}
    if name == "gemma3_text":
        values |= {"num_key_value_heads": 2}
    base = {"model_type": name, "vocab_size": 9, "hidden_size": 8, "max_position_embeddings": 16, **values}
    config_from(base, "config.json")
    with pytest.raises(ModelError, match=words):
        config_from({**base, **over}, "config.json")


@torch.no_grad()
def test_mistral_with_layer_types_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.reference.checkpoints import edit_config

    save("mistral-window", tmp_path)
    edit_config(tmp_path, layer_types=["full_attention", "sliding_attention"])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "MinistralForCausalLM"
    assert (load_bundle(str(tmp_path)).model(Batch.of_ids(IDS)) - theirs(IDS).logits).abs().max() < 1e-4


def test_settings_count_what_was_read() -> None:
    s = ConfigReader({"a": 1, "b": None, "c": {"d": 2}}, "config.json")
    assert (s.size("a"), s.get("b"), s.inner("c").size("d")) == (1, None, 2)
    assert s.sharing({"e": 3}).size("e") == 3 and s.read == {"a", "b", "c", "e"}


def test_the_tokenizer_of_the_fixtures_has_their_rows() -> None:
    assert isinstance(byte_level(VOCAB), Tokenizer) and byte_level(VOCAB).vocab_size == VOCAB
