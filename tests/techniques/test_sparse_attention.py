"""Sparse attention as a technique: which layers stay, what their sparsity costs, and what is refused."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, TechniqueError
from limbeck.model.pattern_cost import total_keys_per_query
from limbeck.model.patterns import Causal, LogSparse, Sliding
from limbeck.techniques.sparse_attention import SparseAttention, layer_sensitivity, with_patterns
from tests.reference.twins import gpt2_config, llama_config, random_decoder

PATTERN = LogSparse(window=2, sinks=1)


def texts(rows: int = 2, length: int = 24) -> list[Batch]:
    made = [Batch.of_ids(torch.randint(0, 61, (rows, length))) for _ in range(2)]
    return [*made, Batch.of_ids(torch.randint(0, 61, (1, 9)))]


def model_of(layers: int = 4, **over):
    return random_decoder(llama_config(61, layers=layers, context=64, **over))


def patterns(model) -> list:
    return [model.config.pattern_at(i) for i in range(model.config.layers)]


@pytest.mark.parametrize(
    ("how", "dense"),
    [
        ({}, set()),
        ({"keep_first": 1, "keep_last": 1}, {0, 3}),
        ({"keep_every": 2}, {1, 3}),
        ({"keep_layers": (2,)}, {2}),
    ],
)
def test_layers_that_are_named_stay_as_they_are(how, dense):
    model = SparseAttention(pattern=PATTERN, **how).apply(model_of())
    assert patterns(model) == [Causal() if i in dense else PATTERN for i in range(4)]
    assert all(b.attention.pattern == p for b, p in zip(model.blocks, patterns(model), strict=True))
    assert (model.config.pattern == PATTERN) == (not dense)  # one pattern is no tuple


def test_a_kept_layer_keeps_a_pattern_of_its_own():
    rolling = Sliding(window=9)
    model = SparseAttention(pattern=PATTERN, keep_first=1).apply(model_of(2, pattern=(rolling, Causal())))
    assert patterns(model) == [rolling, PATTERN]


def mean_nats(model, batches) -> float:
    total, count = 0.0, 0
    for batch in batches:
        labels = batch.next_token_labels()
        chosen = labels >= 0
        logits = model(batch).log_softmax(-1)
        total -= float(logits[chosen].gather(1, labels[chosen][:, None]).sum())
        count += int(chosen.sum())
    return total / count


@torch.no_grad()
def test_sensitivity_is_the_loss_that_one_sparse_layer_adds():
    model, batches = model_of(3).train(), texts()
    before = mean_nats(model.eval(), batches)
    expected = []
    for i in range(3):
        changed = model_of(3, pattern=tuple(PATTERN if j == i else Causal() for j in range(3))).eval()
        changed.load_state_dict(model.state_dict())
        expected.append(mean_nats(changed, batches) - before)
    config = model.train().config
    assert layer_sensitivity(model, PATTERN, batches) == pytest.approx(expected, abs=1e-6)
    assert model.training and model.config is config and patterns(model) == [Causal()] * 3


def test_a_budget_keeps_the_most_sensitive_layers_and_is_kept():
    model, batches = model_of(), texts()
    harm = layer_sensitivity(model, PATTERN, batches)
    technique = SparseAttention(pattern=PATTERN, budget=0.7)
    made = technique.apply(model, batches)
    dense = [i for i, p in enumerate(patterns(made)) if p == Causal()]
    assert len(dense) == 2 and set(dense) == set(sorted(range(4), key=lambda i: -harm[i])[:2])
    assert total_keys_per_query(made.config, 64) <= 0.7 * Causal().keys_per_query(64)
    assert total_keys_per_query(made.config, 64) + (32.5 - PATTERN.keys_per_query(64)) / 4 > 0.7 * 32.5  # no more fit
    assert SparseAttention(pattern=PATTERN, budget=PATTERN.keys_per_query(64) / 32.5).apply(model_of()) is not None


@pytest.mark.parametrize(
    ("technique", "batches", "message"),
    [
        (SparseAttention(pattern=PATTERN, keep_layers=(7,)), (), "keeps layer 7, but the model's layers are 0 to 3"),
        (SparseAttention(pattern=PATTERN, budget=0.7), (), "a budget needs calibration batches"),
        (SparseAttention(pattern=PATTERN, budget=0.01), (), "is less than the pattern log_sparse reads in every layer"),
        (SparseAttention(pattern=Sliding(window=60, sinks=4)), (), "hides nothing in the model's context of 64 tokens"),
        (SparseAttention(pattern=Sliding(window=30), budget=0.9), texts(), "of which sliding hides nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(technique, batches, message):
    model = model_of()
    with pytest.raises(TechniqueError, match=message):
        technique.apply(model, batches)
    assert patterns(model) == [Causal()] * 4


def test_patterns_that_do_not_fit_a_model_are_refused():
    with pytest.raises(TechniqueError, match="2 attention patterns were given for 4 layers"):
        with_patterns(model_of(), [PATTERN, PATTERN])
    near = Sliding(window=62, sinks=4, sink_distance="cache")
    with pytest.raises(TechniqueError, match="a cache of 66 tokens is longer than the 64 learned positions"):
        with_patterns(random_decoder(gpt2_config(61, layers=1, context=64)), [near])


def test_a_budget_and_named_layers_exclude_each_other():
    with pytest.raises(ConfigError, match="a budget chooses the layers that stay"):
        SparseAttention(budget=0.5, keep_first=1)
