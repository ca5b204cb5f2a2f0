"""I17: merged equals adapted, to the dtype's rounding; nothing is merged unasked into a grid or a shared matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import TechniqueError
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from tests.reference.fake_quantized import FakeQuantize
from tests.reference.techniques import base, logits, shake

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}


def slow_delta(layer) -> torch.Tensor:
    """scale * B A of each group, put row by row where the group's rows are, in float64."""
    delta = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for g in layer.groups:
        product = g.scale * (layer.lora_b[g.name].detach().double() @ layer.lora_a[g.name].detach().double())
        at = 0
        for rows in g.rows:
            for row in range(rows.start, rows.stop):
                delta[row] = product[at]
                at += 1
    return delta


@given(
    name=st.sampled_from(["gpt2", "llama"]),
    dtype=st.sampled_from(list(BOUNDS)),
    rank=st.integers(1, 16),
    split=st.booleans(),
    scaling=st.sampled_from(["standard", "rslora"]),
    targets=st.sampled_from([("attention",), ("mlp",), ("q", "v"), ("all",), ("blocks.3.*", "k")]),
)
def test_merged_equals_adapted(name, dtype, rank, split, scaling, targets):
    lora = LoRA(rank=rank, split=split, scaling=scaling, targets=targets)
    model = lora.apply(base(name, dtype=dtype))
    shake(model)
    wanted = logits(model)
    merged, deployed_spec = lora.convert(model)
    assert deployed_spec is None
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=BOUNDS[dtype] * float(wanted.abs().max()))
    assert merged.state_dict().keys() == base(name).state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_weight_is_the_sum_rounded_once(dtype):
    lora = LoRA(rank=3, targets="all")
    model = lora.apply(base("llama", dtype=dtype))
    shake(model)
    wanted = {n: (m.base.weight.double() + slow_delta(m)).to(dtype) for n, m in adapters(model).items()}
    merged, _ = lora.convert(model)
    for name, weight in wanted.items():
        got = merged.get_submodule(name).weight
        assert got.dtype == dtype
        torch.testing.assert_close(got.detach(), weight.detach(), rtol=torch.finfo(dtype).eps, atol=1e-12)
    assert torch.equal(merged.blocks[0].ffn_norm.weight, base("llama", dtype=dtype).blocks[0].ffn_norm.weight)


def test_a_tied_head_is_refused_unless_it_is_to_be_untied():
    model = base("gpt2")
    with pytest.raises(TechniqueError, match="head is tied to the embedding.*untie=true.*merge=never"):
        LoRA(rank=2, targets=("head",)).apply(model)
    assert model.head.weight is model.embed.weight and not adapters(model)


def test_untied_on_purpose_the_head_alone_changes():
    lora = LoRA(rank=2, targets=("head",), untie=True)
    model = lora.apply(base("gpt2"))
    embedding = model.embed.weight.detach().clone()
    shake(model)
    wanted = logits(model)
    assert model.config.tied and model.head.base.weight is model.embed.weight  # one matrix while it trains
    merged, deployed_spec = lora.convert(model)
    assert deployed_spec is None and not merged.config.tied
    assert torch.equal(merged.embed.weight, embedding) and merged.head.weight is not merged.embed.weight
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=1e-5)


def test_left_beside_a_tied_head_stays_tied():
    lora = LoRA(rank=2, targets=("head",), merge="never")
    model = lora.apply(base("gpt2"))
    shake(model)
    finished, deployed_spec = lora.convert(model)
    assert deployed_spec == lora and finished.config.tied and finished.head.base.weight is finished.embed.weight


def test_other_adapters_leave_a_tied_head_tied():
    lora = LoRA(rank=2, targets="all")
    merged, _ = lora.convert(lora.apply(base("gpt2")))
    assert merged.config.tied and merged.head.weight is merged.embed.weight


def test_a_quantized_base_is_never_merged_into():
    quantized = FakeQuantize().apply(base("gpt2"))
    codes = {n: b.clone() for n, b in quantized.named_buffers()}
    lora = LoRA(rank=2)
    model = lora.apply(quantized)
    shake(model)
    wanted = logits(model)
    finished, deployed_spec = lora.convert(model)
    assert deployed_spec == lora and len(adapters(finished)) == 16
    assert torch.equal(logits(finished), wanted)
    after = {n.replace(".base.", "."): b for n, b in finished.named_buffers()}
    assert all(torch.equal(after[n], b) for n, b in codes.items())
    with pytest.raises(TechniqueError, match="is quantized: merging"):
        LoRA(merge="always").apply(FakeQuantize().apply(base("gpt2")))
