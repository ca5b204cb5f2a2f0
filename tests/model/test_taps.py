from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.model.taps import taps
from tests.reference.twins import gpt2_config, random_decoder

BATCH = Batch.of_ids(torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(0)))


def test_inputs_and_outputs_of_linear_layers_are_what_they_compute():
    model = random_decoder(gpt2_config())
    seen, made = {}, {}
    with taps(
        model, ["attention.qkv", "blocks.1.ffn.down"], inputs=seen.__setitem__, outputs=made.__setitem__
    ) as names:
        model(BATCH)
    assert names == ["blocks.0.attention.qkv", "blocks.1.attention.qkv", "blocks.1.ffn.down"]
    assert list(seen) == list(made) == names
    for name in names:
        assert not seen[name].requires_grad
        assert torch.equal(model.get_submodule(name)(seen[name]), made[name])
    embedded = model.embed(BATCH.ids) + model.positions(BATCH.positions())
    assert torch.equal(seen[names[0]], model.blocks[0].attention_norm(embedded))


def test_activations_of_blocks():
    model = random_decoder(gpt2_config())
    stream = []
    with taps(model, ["blocks.?"], inputs=lambda name, x: stream.append(x), outputs=lambda name, x: stream.append(x)):
        model(BATCH)
    assert torch.equal(stream[1], stream[2])  # what leaves the first block enters the second
    assert torch.equal(model.head(model.norm(stream[3])), model(BATCH))


def test_nothing_listens_afterwards_even_after_an_error():
    model, calls = random_decoder(gpt2_config()), []
    with pytest.raises(RuntimeError, match="mine"), taps(model, ["*"], inputs=lambda name, x: calls.append(name)):
        model(BATCH)
        raise RuntimeError("mine")
    heard = len(calls)
    model(BATCH)
    assert heard > 0 and len(calls) == heard
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("patterns", [["attention.qvk"], []])
def test_patterns_that_match_nothing_are_an_error(patterns):
    with (
        pytest.raises(TechniqueError, match="no module of the model matches"),
        taps(random_decoder(gpt2_config()), patterns),
    ):
        pass
