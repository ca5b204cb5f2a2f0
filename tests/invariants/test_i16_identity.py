"""I16: LoRA with B = 0 changes no logit, whatever A, rank, scale, targets and dtype; so Freeze; bit by bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.techniques.freeze import Freeze
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from limbeck.techniques.technique import apply_all
from tests.reference.fake_quantized import FakeQuantize
from tests.reference.techniques import base, logits, plain_batch


@given(
    name=st.sampled_from(["gpt2", "llama"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    rank=st.integers(1, 16),
    alpha=st.floats(0.1, 1e4),
    targets=st.sampled_from(["attention", "mlp", "attention+mlp", "all", "head"]),
    split=st.booleans(),
    seed=st.integers(0, 999),
)
def test_lora_with_b_zero_changes_no_bit(name, dtype, rank, alpha, targets, split, seed):
    wanted = logits(base(name, dtype=dtype))
    torch.manual_seed(seed)
    lora = LoRA(rank=rank, alpha=alpha, targets=targets, split=split, merge="never")
    model = lora.apply(base(name, dtype=dtype))
    assert torch.equal(logits(model), wanted)
    with torch.no_grad():
        for layer in adapters(model).values():
            for a in layer.lora_a.values():
                a.normal_(std=100.0)
    assert torch.equal(logits(model), wanted)


def test_nor_in_training_mode_where_dropout_drops_what_is_zero_anyway():
    lora = LoRA(rank=4, dropout=0.5)
    batch = plain_batch()
    with torch.no_grad():
        assert torch.equal(lora.apply(base("gpt2")).train()(batch), base("gpt2").train()(batch))


def test_b_not_zero_does_change_logits():
    model = LoRA(rank=2).apply(base("gpt2"))
    with torch.no_grad():
        adapters(model)["blocks.0.ffn.down"].lora_b["down"].fill_(0.1)
    assert not torch.equal(logits(model), logits(base("gpt2")))


@pytest.mark.parametrize("train", ["last_layer", "half", "no_embeddings", ("blocks.0", "norm")])
def test_freeze_changes_no_bit(train):
    assert torch.equal(logits(Freeze(train=train).apply(base("llama"))), logits(base("llama")))


def test_lora_over_a_quantized_base_changes_no_bit_of_it():
    quantized = FakeQuantize().apply(base("llama"))
    wanted = logits(quantized)
    assert torch.equal(logits(apply_all((LoRA(rank=4),), quantized)), wanted)
