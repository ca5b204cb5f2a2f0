from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config import build
from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, TechniqueError
from limbeck.model.cache import KVCache
from limbeck.model.patterns import Causal, Sliding
from limbeck.techniques.depth import Depth, block_influence
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import adapters
from tests.reference.techniques import base, calibration, logits, plain_batch
from tests.reference.twins import gpt2_config, llama_config, random_decoder


def deep(layers: int, **over):
    return random_decoder(gpt2_config(layers=layers, hidden_size=8, heads=2, **over))


def by_hand(model, layers, batch):
    """The kept blocks, one after the other, with the model's own parts around them."""
    skipped = [i for i in range(model.config.layers) if i not in layers]
    hooks = [model.blocks[i].register_forward_hook(lambda m, args, out: args[0]) for i in skipped]
    try:
        return logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()


def test_uniform_is_how_distilgpt2_was_started():
    assert Depth(layers=6).choose(deep(12)) == (0, 2, 4, 7, 9, 11)


@pytest.mark.parametrize(
    ("depth", "have", "wanted"),
    [
        (Depth(layers=1), 4, (0,)),
        (Depth(layers=2), 5, (0, 4)),
        (Depth(layers=3), 4, (0, 2, 3)),
        (Depth(layers=4), 4, (0, 1, 2, 3)),
        (Depth(layers=4, rule="first_last"), 12, (0, 1, 10, 11)),
        (Depth(layers=3, rule="first_last"), 12, (0, 1, 11)),
        (Depth(layers=1, rule="first_last"), 12, (0,)),
        (Depth(layers=(1, 3)), 4, (1, 3)),
    ],
)
def test_rules(depth, have, wanted):
    assert depth.choose(deep(have)) == wanted


@given(have=st.integers(1, 48), data=st.data(), rule=st.sampled_from(["uniform", "first_last"]))
def test_counts_give_as_many_distinct_layers_in_order(have, data, rule):
    n = data.draw(st.integers(1, have))

    class Shape:
        class config:  # noqa: N801
            layers = have

    chosen = Depth(layers=n, rule=rule).choose(Shape())
    assert len(chosen) == n and list(chosen) == sorted(set(chosen))
    assert chosen[0] == 0 and chosen[-1] == (have - 1 if n > 1 else 0)
    if rule == "uniform" and n > 1:
        for i, layer in enumerate(chosen):
            assert abs(layer - i * (have - 1) / (n - 1)) <= 0.5


@given(data=st.data(), name=st.sampled_from(["gpt2", "llama"]))
def test_the_student_is_the_teacher_with_blocks_skipped(data, name):
    layers = tuple(sorted(data.draw(st.sets(st.integers(0, 3), min_size=1))))
    teacher = base(name)
    before = {k: x.clone() for k, x in teacher.state_dict().items()}
    student = Depth(layers=layers).apply(teacher)
    assert student.config == teacher.config.with_layers(layers)
    assert torch.equal(logits(student), by_hand(teacher, layers, plain_batch()))
    with torch.no_grad():
        for p in student.parameters():
            p += 1.0
    assert all(torch.equal(x, before[k]) for k, x in teacher.state_dict().items())  # copies, no shared memory
    assert teacher.config.layers == 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_student_decodes_with_a_cache_and_keeps_its_tie(name):
    student = Depth(layers=(1, 3)).apply(base(name))
    assert (student.head.weight is student.embed.weight) == student.config.tied
    ids = plain_batch(rows=1).ids
    cache = KVCache(student.config, 1, ids.shape[1])
    with torch.no_grad():
        steps = [student(Batch.of_ids(ids[:, t : t + 1]), cache=cache) for t in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), logits(student, Batch.of_ids(ids)), rtol=1e-4, atol=1e-4)


def test_patterns_go_with_their_layers():
    teacher = random_decoder(llama_config(layers=3, pattern=(Causal(), Sliding(window=2), Causal())))
    student = Depth(layers=(1, 2)).apply(teacher)
    assert student.config.pattern == (Sliding(window=2), Causal())
    assert torch.equal(logits(student), by_hand(teacher, (1, 2), plain_batch()))


def test_depth_of_an_adapted_model_copies_the_adapters_too():
    student = Depth(layers=(0, 3)).apply(LoRA(rank=2).apply(base("gpt2")))
    assert len(adapters(student)) == 8
    assert {n for n, p in student.named_parameters() if p.requires_grad} == LoRA(rank=2).trained(student)


def slow_influence(model, batches):
    """1 - mean cosine, token by token, on hidden states taken one block at a time."""
    totals, tokens = [0.0] * model.config.layers, 0
    for batch in batches:
        states = []
        hooks = [b.register_forward_hook(lambda m, a, out, keep=states: keep.append((a[0], out))) for b in model.blocks]
        logits(model, batch)
        for hook in hooks:
            hook.remove()
        for row, column in batch.real.nonzero().tolist():
            tokens += 1
            for i, (into, out) in enumerate(states):
                x, y = into[row, column].double(), out[row, column].double()
                totals[i] += float(x @ y / (x.norm() * y.norm()))
    return [1 - total / tokens for total in totals]


def test_influence_is_one_minus_the_mean_cosine():
    model = base("gpt2").train()
    got = block_influence(model, calibration())
    assert model.training
    assert got == pytest.approx(slow_influence(model, calibration()), abs=1e-9)


def test_importance_drops_the_block_that_does_nothing():
    model = base("llama")
    with torch.no_grad():
        for p in (model.blocks[1].attention.out.weight, model.blocks[1].ffn.down.weight):
            p.zero_()
    assert block_influence(model, calibration())[1] == pytest.approx(0.0, abs=1e-9)
    student = Depth(layers=3, rule="importance").apply(model, calibration())
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-6, atol=1e-6)


def test_padding_has_no_influence():
    model, batch = base("gpt2"), plain_batch(rows=2, length=6)
    wider = Batch.of_ids(torch.nn.functional.pad(batch.ids, (0, 5), value=7), [6, 5])
    assert block_influence(model, [wider]) == pytest.approx(block_influence(model, [batch]), abs=1e-6)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (Depth(layers=(0, 7)), "keeps layer 7, but the model's layers are 0 to 3"),
        (Depth(layers=(-1, 2)), "keeps layer -1"),
        (Depth(layers=5), "keeps 5 layers, but the model has 4"),
        (Depth(layers=2, rule="importance"), "needs calibration batches"),
    ],
)
def test_what_the_model_has_not_is_refused(depth, message):
    with pytest.raises(TechniqueError, match=message):
        depth.apply(base("gpt2"))


def test_importance_over_mixed_patterns_is_refused_as_no_checkpoint_could_tell():
    model = deep(3, pattern=(Causal(), Sliding(window=2), Causal()))
    for attempt in (
        lambda: Depth(layers=2, rule="importance").apply(model, calibration()),
        lambda: Depth(layers=2, rule="importance").training_skeleton(model),
    ):
        with pytest.raises(TechniqueError, match="layers of one attention pattern"):
            attempt()


def test_padding_alone_is_no_calibration():
    batch = Batch.of_ids(torch.zeros(1, 3, dtype=torch.long), [0])
    with pytest.raises(TechniqueError, match="needs calibration batches"):
        block_influence(base("gpt2"), [batch])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 0}, "0 layers make no model"),
        ({"layers": []}, "no layer is named"),
        ({"layers": [1, 0]}, "in their order"),
        ({"layers": [1, 1]}, "once each"),
        ({"layers": [0, 1], "rule": "uniform"}, "a rule goes with a count"),
        ({}, "'layers' is required"),
    ],
)
def test_bad_settings_are_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Depth, values)
