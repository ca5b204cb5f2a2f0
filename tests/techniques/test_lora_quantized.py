"""LoRA above a quantized base (QLoRA): it trains, is never merged, and is rebuilt beside the codes."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from limbeck.techniques.technique import apply_all, convert_all, deployed, training
from tests.reference.fake_quantized import FakeQuantize, FakeQuantizedLinear
from tests.reference.techniques import base, logits, plain_batch, shake

QLORA = (FakeQuantize(), LoRA(rank=2))
ORDERS = [QLORA, (FakeQuantize(aware=True), LoRA(rank=2)), (LoRA(rank=2), FakeQuantize())]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("techniques", ORDERS, ids=["ptq-lora", "qat-lora", "lora-ptq"])
def test_it_deploys_as_codes_with_the_adapter_beside(name, techniques):
    model = apply_all(techniques, base(name))
    if techniques[-1].name == "lora":
        model.train()(plain_batch()).square().sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == techniques[-1].trained(model)
    shake(model)
    wanted = logits(model)
    finished, deployed_specs = convert_all(techniques, model)
    assert deployed_specs == techniques
    found = adapters(finished)
    assert found and all(isinstance(m.base, FakeQuantizedLinear) for m in found.values())
    torch.testing.assert_close(logits(finished), wanted, rtol=1e-5, atol=1e-5)
    rebuilt = deployed(deployed_specs, Decoder(finished.config))
    rebuilt.load_state_dict(finished.state_dict(), strict=True)
    assert torch.equal(logits(rebuilt), logits(finished))
    skeleton = training(techniques, base(name, seed=4))
    assert skeleton.state_dict().keys() == apply_all(techniques, base(name)).state_dict().keys()


@pytest.mark.parametrize("aware", [False, True])
def test_merging_into_a_quantized_base_is_refused_before_training(aware):
    model = FakeQuantize(aware=aware).apply(base("gpt2"))
    with pytest.raises(TechniqueError, match="blocks.0.attention.qkv is quantized: merging an adapter would round it"):
        LoRA(merge="always").apply(model)
    assert not adapters(model)


def test_and_after_it_where_the_base_was_quantized_in_between():
    lora = LoRA(rank=2, merge="always")
    model = FakeQuantize().apply(lora.apply(base("gpt2")))
    with pytest.raises(TechniqueError, match="is quantized"):
        lora.convert(model)


def test_one_quantized_layer_keeps_every_adapter_beside():
    lora = LoRA(rank=2)
    model = base("gpt2")
    model.blocks[1].ffn.down = FakeQuantizedLinear(model.blocks[1].ffn.down)
    stated = lora.stated_bytes(model)
    finished, deployed_spec = lora.convert(lora.apply(model))
    assert deployed_spec == lora and len(adapters(finished)) == 16
    assert finished.count_bytes() <= stated
