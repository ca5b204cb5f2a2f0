from __future__ import annotations

import pytest
import torch

from limbeck.config import build
from limbeck.errors import ConfigError, TechniqueError
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.technique import trainable_share
from tests.reference.techniques import base, logits, plain_batch
from tests.reference.twins import gpt2_config, random_decoder


def parts(freeze: Freeze, name: str = "gpt2") -> set[str]:
    """First parts of the trained names: embed, blocks.2, norm ..."""
    model = freeze.apply(base(name))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return {".".join(n.split(".")[:2]) if n.startswith("blocks.") else n.split(".")[0] for n in names}


@pytest.mark.parametrize(
    ("freeze", "name", "wanted"),
    [
        (Freeze(), "gpt2", {"blocks.3", "norm"}),
        (Freeze(), "llama", {"blocks.3", "norm", "head"}),  # an untied head is its own
        (Freeze(count=2), "gpt2", {"blocks.2", "blocks.3", "norm"}),
        (Freeze(train="half"), "gpt2", {"blocks.2", "blocks.3", "norm"}),
        (Freeze(train="no_embeddings"), "gpt2", {"blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm"}),
        (Freeze(train="no_embeddings"), "llama", {"blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"}),
        (Freeze(train=("embed", "blocks.1")), "gpt2", {"embed", "blocks.1"}),
        (Freeze(train=("head",)), "gpt2", {"embed"}),  # tied: the one matrix
        (Freeze(train=("head",)), "llama", {"head"}),
    ],
)
def test_what_is_trained(freeze, name, wanted):
    assert parts(freeze, name) == wanted


def test_half_of_an_odd_number_of_blocks_is_rounded_up():
    model = Freeze(train="half").apply(random_decoder(gpt2_config(layers=3)))
    trained = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad and n.startswith("blocks.")}
    assert trained == {"1", "2"}


def test_biases_alone_by_pattern():
    model = Freeze(train=("*.bias",)).apply(base("gpt2"))
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"bias"}
    assert trainable_share(model).trainable == sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))


def test_block_1_is_not_block_10():
    model = Freeze(train=("blocks.1",)).apply(random_decoder(gpt2_config(layers=11, hidden_size=8)))
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"1"}


def test_training_moves_the_trained_part_alone():
    model = Freeze().apply(base("gpt2")).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(plain_batch()).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= Freeze().trained(model)


def test_a_single_pattern_may_stand_without_a_list():
    assert Freeze(train="blocks.2").train == ("blocks.2",)


def test_the_last_of_two_holds():
    model = Freeze(train="half").apply(Freeze().apply(base("gpt2")))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == Freeze(train="half").trained(model)


def test_it_changes_no_logit_and_states_the_same_bytes():
    model = base("gpt2")
    wanted = logits(model)
    assert Freeze().stated_bytes(model) == model.count_bytes()
    assert torch.equal(logits(Freeze().apply(model)), wanted)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (Freeze(count=5), "train the last 5 blocks, but the model has 4"),
        (Freeze(train=("blocks.4",)), "the pattern 'blocks.4' matches no parameter"),
        (Freeze(train=("norm", "embed.wait")), "did you mean 'embed.weight'"),
        (Freeze(train="halv"), "the pattern 'halv' matches no parameter; did you mean 'half'"),
    ],
)
def test_what_the_model_has_not_is_refused_before_anything_changes(freeze, message):
    model = base("gpt2")
    with pytest.raises(TechniqueError, match=message):
        freeze.apply(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "half", "count": 2}, "count belongs to train=last_layer"),
        ({"train": []}, "names no parameter"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Freeze, values)


def test_a_word_in_a_list_of_one_is_that_word_and_stands_alone():
    assert Freeze(train=["last_layer"]) == Freeze(train="last_layer")
    with pytest.raises(ValueError, match="'half' stands alone"):
        Freeze(train=["half", "head"])
