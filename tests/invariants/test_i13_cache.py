"""I13 (model and cache): token by token with a cache equals one full forward, past a rolling window, and ragged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import Batch
from limbeck.model.cache import KVCache
from limbeck.model.patterns import Causal, LogSparse, Sliding, Strided
from tests.reference.slow_decoder import slow_logits
from tests.reference.twins import gpt2_config, llama_config, random_decoder

V = 61
PATTERNS = {
    "causal": Causal(),
    "window": Sliding(window=4),
    "window-of-one": Sliding(window=1),
    "sinks": Sliding(window=3, sinks=2),
    "wide": Sliding(window=50, sinks=3),
    "mixed": (Sliding(window=4, sinks=1), Causal()),
    "log-sparse": LogSparse(window=2),
    "log-sparse-sinks": LogSparse(window=1, sinks=2, restart=5),
    "strided": Strided(window=2, stride=3, sinks=1),
    "nearer-sinks": Sliding(window=3, sinks=2, sink_distance="cache"),
    "hybrid": (LogSparse(window=1), Sliding(window=3, sinks=1)),
}
CONFIGS = {"gpt2": gpt2_config, "llama": llama_config}


def model_of(family: str, pattern: str):
    return random_decoder(CONFIGS[family](V, pattern=PATTERNS[pattern]), dtype=torch.float64)


def ids_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def full(model, ids):
    return model(Batch.of_ids(ids))


@torch.no_grad()
def in_chunks(model, ids, chunks, capacity=None):
    cache = KVCache(model.config, ids.shape[0], capacity or ids.shape[1], torch.float64)
    parts = [model(Batch.of_ids(part), cache=cache) for part in ids.split(chunks, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_token_by_token_equals_one_forward(family, pattern):
    model, ids = model_of(family, pattern), ids_of(20)
    assert (in_chunks(model, ids, [1] * 20) - full(model, ids)).abs().max() < 1e-11


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_full_forward_equals_the_slow_decoder(family, pattern):
    model, ids = model_of(family, pattern), ids_of(12)
    expected = slow_logits(model.config, model.state_dict(), ids[0].tolist())
    assert (full(model, ids)[0] - expected).abs().max() < 1e-10


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.sampled_from(sorted(PATTERNS)),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_any_cut_into_chunks_equals_one_forward(family, pattern, chunks, room):
    model, ids = model_of(family, pattern), ids_of(sum(chunks))
    assert (in_chunks(model, ids, chunks, sum(chunks) + room) - full(model, ids)).abs().max() < 1e-11


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_text_longer_than_the_context_streams(family):
    """Past the context: no distance grows, learned positions go round, and the cache stays as it is."""
    pattern = Sliding(window=3, sinks=2, sink_distance="cache")
    model, ids = random_decoder(CONFIGS[family](V, pattern=pattern, context=7), dtype=torch.float64), ids_of(24)
    expected = slow_logits(model.config, model.state_dict(), ids[0].tolist())
    assert (full(model, ids)[0] - expected).abs().max() < 1e-10
    assert (in_chunks(model, ids, [4, 1, 1, 9, *[1] * 9])[0] - expected).abs().max() < 1e-10
    assert KVCache(model.config, 1, 24).bytes == KVCache(model.config, 1, 20_000).bytes


def padded(rows: list[torch.Tensor], left: bool) -> Batch:
    """Rows of unequal length as one batch, padded with a token that must not matter."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), V - 1)
    documents = torch.zeros(len(rows), width, dtype=torch.int32)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at], documents[i, at] = row, 1
    base = Batch.of_ids(ids)
    return Batch(ids, documents > 0, documents, base.row_ids, base.offsets, plain=not left)


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.sampled_from(sorted(PATTERNS)),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), min_size=2, max_size=3),
    st.booleans(),
)
@torch.no_grad()
def test_ragged_prompts_equal_each_alone(family, pattern, sizes, left):
    """Prompts of unequal length, then tokens one by one; a row that has ended goes on with padding."""
    model = model_of(family, pattern)
    rows = [ids_of(prompt + more, seed=i)[0] for i, (prompt, more) in enumerate(sizes)]
    steps = max(more for _, more in sizes)
    cache = KVCache(model.config, len(rows), max(p for p, _ in sizes) + steps, torch.float64)
    got: list[list[torch.Tensor]] = [[] for _ in rows]
    batch = padded([row[:prompt] for row, (prompt, _) in zip(rows, sizes, strict=True)], left)
    logits = model(batch, cache=cache)
    for i in range(len(rows)):
        got[i].extend(logits[i][batch.real[i]])
    for step in range(steps):
        now = [row[prompt + step : prompt + step + 1] for row, (prompt, _) in zip(rows, sizes, strict=True)]
        batch = padded(now, left=False)
        logits = model(batch, cache=cache)
        assert torch.isfinite(logits).all()
        for i in range(len(rows)):
            got[i].extend(logits[i][batch.real[i]])
    assert cache.lengths.tolist() == [len(row) for row in rows]
    for row, logits in zip(rows, got, strict=True):
        assert (torch.stack(logits) - full(model, row[None])[0]).abs().max() < 1e-11


@pytest.mark.parametrize("pattern", ["causal", "sinks"])
@torch.no_grad()
def test_selected_rows_go_on_as_if_they_had_been_alone(pattern):
    """What a beam search does: rows are repeated and reordered between two tokens."""
    model = model_of("llama", pattern)
    ids = torch.cat((ids_of(9, seed=1), ids_of(9, seed=2)))
    cache = KVCache(model.config, 2, 16, torch.float64)
    model(Batch.of_ids(ids[:, :7]), cache=cache)
    order = torch.tensor([1, 0, 1])
    cache.select(order)
    logits = model(Batch.of_ids(ids[order, 7:8]), cache=cache)
    expected = full(model, ids)[order, 7]
    assert (logits[:, 0] - expected).abs().max() < 1e-11


def test_a_rolling_cache_holds_no_more_than_it_can_see():
    config = llama_config(V, pattern=(Sliding(window=4, sinks=2), Causal()))
    cache = KVCache(config, 3, 1000)
    assert [k.shape[2] for k in cache.keys] == [4 + 2 + 1, 1000 + 1]
    assert cache.bytes == 2 * 3 * (7 + 1001) * config.kv_heads * config.head_dim * 4


@pytest.mark.parametrize("kind", ["model", "int8"])
def test_the_memory_of_a_window_does_not_grow_with_the_text(kind):
    config = llama_config(V, pattern=Sliding(window=4, sinks=2))
    small, large = (KVCache(config, 2, capacity, kind=kind) for capacity in (6, 1_000_000))
    assert small.bytes == large.bytes
    model = random_decoder(config)
    bins = 2 * 2 * config.layers * config.kv_heads * config.head_dim * 4  # of both rows, keys and values
    if kind == "model":
        assert 2 * model.kv_bytes(1_000_000) == 2 * model.kv_bytes(6) == large.bytes - bins
    assert model.kv_bytes(3) == 3 * model.kv_bytes_per_token()


@pytest.mark.parametrize("pattern", ["sinks", "mixed"])
@torch.no_grad()
def test_a_rolling_cache_goes_on_far_past_the_context(pattern):
    """Many turns of the ring, and positions beyond those that the model was made for."""
    model, ids = model_of("llama", pattern), ids_of(150)
    assert model.config.context == 64
    assert (in_chunks(model, ids, [3] + [1] * 147) - full(model, ids)).abs().max() < 1e-11


def test_a_cache_that_is_full_says_so_and_stays_as_it_was():
    model, ids = model_of("gpt2", "causal"), ids_of(6)
    cache = KVCache(model.config, 1, 5, torch.float64)
    with torch.no_grad():
        model(Batch.of_ids(ids[:, :4]), cache=cache)
        with pytest.raises(ValueError, match="4 of 5"):
            model(Batch.of_ids(ids[:, 4:6]), cache=cache)
        last = model(Batch.of_ids(ids[:, 4:5]), cache=cache)
    assert (last[0, 0] - full(model, ids)[0, 4]).abs().max() < 1e-11
