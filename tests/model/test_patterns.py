"""Patterns as values: bands, masks, counts of keys and pictures say the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.model.config import DecoderConfig
from limbeck.model.pattern_cost import pattern_costs, total_keys_per_query
from limbeck.model.patterns import Causal, LogSparse, Sliding, Strided, hybrid_layers, picture
from tests.reference.slow_decoder import sees

sizes, sinks = st.integers(1, 9), st.integers(0, 4)
patterns = st.one_of(
    st.just(Causal()),
    st.builds(Sliding, window=sizes, sinks=sinks),
    st.builds(LogSparse, window=sizes, sinks=sinks, restart=st.sampled_from([0, 10, 16, 21])),
    st.builds(Strided, window=sizes, sinks=sinks, stride=st.integers(2, 9), keys=st.integers(0, 4)),
)


@given(patterns, st.integers(1, 60))
def test_mask_bands_counts_and_slots_agree_with_the_slow_rule(pattern, length):
    position = torch.arange(length)
    expected = torch.tensor([[sees(pattern, q, k) for k in range(length)] for q in range(length)])
    assert torch.equal(pattern.allows(position[:, None], position), expected)
    bands = pattern.bands(length)
    assert all(low < high <= length for low, high in bands)
    assert all(a[1] < b[0] for a, b in zip(bands, bands[1:], strict=False))  # ascending, and merged where they touch
    away = position[:, None] - position
    banded = sum((((away >= low) & (away < high)) for low, high in bands), start=torch.zeros(1, dtype=torch.bool))
    assert torch.equal((banded | (position < pattern.sinks)) & (away >= 0), expected)
    assert pattern.pairs(length) == expected.sum()
    assert pattern.is_causal(length) == bool(expected.equal(away >= 0))


@given(patterns, st.integers(1, 60))
def test_a_query_reads_the_slots_of_the_keys_it_sees(pattern, length):
    listed = pattern.key_slots(torch.arange(length), length)
    for query in range(length):
        seen = {k for k in range(query + 1) if sees(pattern, query, k)}
        if listed is not None:
            row = [x for x in listed[query].tolist() if x >= 0]
            assert len(row) == len(set(row)) and set(row) == seen
        else:  # the first slots, of a ring or of a whole cache
            held = {int(pattern.slot(torch.tensor(k))): k for k in range(query + 1)}
            count = min(query + 1, pattern.slots(length))
            assert sorted(held) == list(range(count)) and set(held.values()) == seen


def test_keys_grow_with_the_logarithm_of_the_length():
    pattern = LogSparse(window=32, sinks=4)
    counts = [pattern.key_slots(torch.tensor([n - 1]), n).shape[1] for n in (1024, 4096, 16384)]
    assert counts == [32 + 5 + 4, 32 + 7 + 4, 32 + 9 + 4]  # the powers of two from the window on
    assert pattern.keys_per_query(32768) < 48


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ()),
        ({"first": 1, "last": 2}, (0, 4, 5)),
        ({"every": 3}, (2, 5)),
        ({"first": 9}, (0, 1, 2, 3, 4, 5)),
        ({"last": 1, "every": 4}, (3, 5)),
    ],
)
def test_a_hybrid_keeps_the_layers_that_are_named(how, expected):
    assert hybrid_layers(6, **how) == expected


def test_a_picture_shows_the_mask():
    assert picture(Sliding(window=2, sinks=1), 6).split() == ["#", "##", "###", "#.##", "#..##", "#...##"]
    assert picture(LogSparse(window=1), 6, 6).split() == ["#", "##", "###", ".###", "#.###", ".#.###"]
    large = picture(LogSparse(window=64), 4096, 8).split("\n")
    assert [len(line) for line in large] == list(range(1, 9)) and large[-1][-1] == "+" and "." in large[-1]
    assert picture(Causal(), 1000, 4).split() == ["#", "##", "###", "####"]


@pytest.mark.parametrize("kind", [Sliding, LogSparse, Strided])
def test_a_window_of_nothing_is_refused(kind):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        kind(window=0)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValidationError, match="a restart after 4 tokens must lie beyond the window of 8"):
        LogSparse(window=8, restart=4)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Sliding(window=8, sinks=-1)
    with pytest.raises(ValidationError, match="2 attention patterns were given for 3 layers"):
        DecoderConfig(vocab_size=9, hidden_size=8, heads=2, layers=3, pattern=(Causal(), LogSparse()))
    near = Sliding(window=60, sinks=4, sink_distance="cache")
    with pytest.raises(ValidationError, match="a cache of 64 tokens is longer than the 63 learned positions"):
        DecoderConfig(vocab_size=9, hidden_size=8, heads=2, layers=1, context=63, positions="learned", pattern=near)


def test_costs_of_a_hybrid_by_pattern():
    sparse = LogSparse(window=2, sinks=1)
    config = DecoderConfig(vocab_size=9, hidden_size=8, heads=2, layers=3, pattern=(sparse, Causal(), sparse))
    found = pattern_costs(config, 100)
    assert [c.layers for c in found] == [(0, 2), (1,)] and [c.kv_slots for c in found] == [100, 100]
    assert found[1].keys_per_query == found[0].dense_keys_per_query == 50.5
    assert total_keys_per_query(config, 100) == pytest.approx((2 * sparse.pairs(100) / 100 + 50.5) / 3)
    assert str(found[0]).startswith("log_sparse (sinks 1, window 2) in layers 0, 2: ")
    assert str(found[1]) == "causal in layer 1: 50.5 keys a query of 50.5 (100.0%), cache of 100 tokens"
    assert found[0].describe()["pattern"] == sparse.model_dump(mode="json")
