from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.data.batch import Batch
from limbeck.model import attention
from limbeck.model.attention import View, attend
from limbeck.model.patterns import Causal, Sliding
from tests.reference.slow_decoder import sees
from tests.reference.twins import llama_config, random_decoder


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_are_repeated_keys(kv_heads):
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, kv_heads, 5, 6), torch.randn(2, kv_heads, 5, 6)
    wide = [x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v)]
    scores = (q @ wide[0].transpose(-1, -2)) / 6**0.5
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).softmax(-1)
    assert torch.allclose(attend(q, k, v, None), weights @ wide[1], atol=1e-6)


def test_the_mask_says_who_is_seen_and_the_scale_is_the_callers():
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    mask = torch.rand(1, 1, 3, 5) > 0.4
    mask[..., 0] = True
    weights = (q @ k.transpose(-1, -2) * 0.1).masked_fill(~mask, float("-inf")).softmax(-1)
    assert torch.allclose(attend(q, k, v, mask, scale=0.1), weights @ v, atol=1e-6)


@pytest.mark.parametrize("pattern", [Causal(), Sliding(window=2), Sliding(window=2, sinks=1), Sliding(window=9)])
def test_masks_are_the_patterns_and_left_out_where_causal_says_it(pattern):
    batch = Batch.of_ids(torch.zeros(1, 6, dtype=torch.long))
    view = View(batch.positions(), batch.document_ids, plain=True)
    expected = torch.tensor([[sees(pattern, t, s) for s in range(6)] for t in range(6)])
    assert torch.equal(view.dense_mask(pattern)[0, 0], expected)
    causal = torch.equal(expected, torch.ones(6, 6).tril().bool())
    assert (view.mask(pattern) is None) == causal == pattern.is_causal(6)


def test_one_forward_builds_each_mask_once(monkeypatch):
    model = random_decoder(llama_config(pattern=Sliding(window=2), layers=3))
    calls = []
    allows = Sliding.allows
    monkeypatch.setattr(Sliding, "allows", lambda self, q, k: calls.append(1) or allows(self, q, k))
    model(Batch.of_ids(torch.zeros(1, 6, dtype=torch.long)))
    assert len(calls) == 1


def test_a_prompt_into_an_empty_cache_takes_the_causal_kernel(monkeypatch):
    from limbeck.model.cache import KVCache

    model = random_decoder(llama_config())
    causal = []
    call = F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda *a, **k: causal.append(k["is_causal"]) or call(*a, **k)
    )
    with torch.no_grad():
        model(Batch.of_ids(torch.zeros(1, 6, dtype=torch.long)), cache=KVCache(model.config, 1, 8))
    assert causal == [True, True]
