from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.data.batch import Batch
from limbeck.model import attention
from limbeck.model.attention import AttentionContext, attend
from limbeck.model.patterns import Causal, LogSparse, Sliding
from tests.reference.slow_decoder import sees
from tests.reference.twins import gpt2_config, llama_config, random_decoder


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
    view = AttentionContext(batch.positions(), batch.document_ids, plain=True)
    expected = torch.tensor([[sees(pattern, t, s) for s in range(6)] for t in range(6)])
    assert torch.equal(view.dense_mask(pattern)[0, 0], expected)
    causal = torch.equal(expected, torch.ones(6, 6).tril().bool())
    assert (view.mask(pattern) is None) == causal == pattern.is_causal(6)


def test_one_forward_builds_each_mask_once(monkeypatch):
    model = random_decoder(llama_config(pattern=Sliding(window=2), layers=3))
    calls = []
    allows = Sliding.allows
    monkeypatch.setattr(Sliding, "allows", lambda self, q, k: calls.append(1) or allows(self, q, k))
    monkeypatch.setattr(attention.AttentionContext, "sparse_spans", lambda *_: None)  # as with dropout
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


PACKED = torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3, [0] * 2 + [1] * 10], dtype=torch.int32)


def packed_batch() -> Batch:
    ids = torch.randint(11, PACKED.shape)
    real, flat = PACKED > 0, torch.zeros_like(PACKED)
    return Batch(ids, real, PACKED, torch.where(real, 0, -1), flat)


@pytest.mark.parametrize("pattern", [Causal(), Sliding(window=9, sinks=1), Sliding(window=4)])
def test_documents_one_by_one_are_the_dense_mask(pattern, monkeypatch):
    model, batch = random_decoder(llama_config(pattern=pattern)).double(), packed_batch()
    calls = []
    own = attention.document_attention
    monkeypatch.setattr(attention, "document_attention", lambda *a: calls.append(1) or own(*a))

    def logits_and_gradients(scores_a_span):
        monkeypatch.setattr(attention, "_SCORES_A_SPAN", scores_a_span)
        model.zero_grad()
        logits = model(batch)[PACKED > 0]
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    masked = logits_and_gradients(1 << 40)
    assert not calls
    alone = logits_and_gradients(0)
    assert bool(calls) == pattern.is_causal(10)
    for a, b in zip(alone, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "pattern", [Causal(), Sliding(window=3), Sliding(window=3, sinks=2), LogSparse(window=2, sinks=1)]
)
@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_values_and_gradients_of_packed_rows_are_those_of_dense_attention(make, pattern, monkeypatch):
    """Beside a softmax over all pairs of tokens whose mask is written out, token by token (I14's second half)."""
    model, batch = random_decoder(make(pattern=pattern)).double(), packed_batch()
    places = [[row[:t].count(d) for t, d in enumerate(row)] for row in PACKED.tolist()]
    seen = torch.tensor(
        [[[d == e and sees(pattern, at[t], at[s]) for s, e in enumerate(row)] for t, d in enumerate(row)]
         for row, at in zip(PACKED.tolist(), places, strict=True)]
    )  # fmt: skip

    def dense(q, k, v, mask, *, dropout=0.0, scale=None):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num() @ v

    def logits_and_gradients():
        model.zero_grad()
        logits = model(batch)[PACKED > 0]
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    ours = logits_and_gradients()
    monkeypatch.setattr(attention, "attend", dense)
    monkeypatch.setattr(attention.AttentionContext, "spans", lambda *_: None)
    monkeypatch.setattr(attention.AttentionContext, "sparse_spans", lambda *_: None)
    for a, b in zip(ours, logits_and_gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_bf16_takes_the_own_kernel_and_dropout_torchs(monkeypatch):
    batch = Batch.of_ids(torch.zeros(1, 6, dtype=torch.long))
    view = AttentionContext(batch.positions(), batch.document_ids, plain=True)
    assert view.spans(Causal(), 4, narrow=True) == ((0, 1, 0, 6),)
    assert view.spans(Causal(), 4, narrow=False) is None
    assert view.spans(Sliding(window=3), 4, narrow=True) is None
    monkeypatch.setattr(attention, "document_attention", None)  # not to be called
    model = random_decoder(llama_config(dropout=0.1)).bfloat16().train()
    assert bool(model(batch).isfinite().all())
