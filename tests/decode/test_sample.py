from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from limbeck.decode.sample import (
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repeats,
    seen_tokens,
    uniforms,
)
from limbeck.decode.settings import Decoding
from tests.reference.slow_decode import slow_draw


def logits(seed: int, rows: int = 3, vocab: int = 40) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.3])
def test_repetition_penalty_is_transformers(penalty):
    x, ids = logits(0), torch.tensor([[1, 2, 2], [5, 0, 39], [7, 7, 7]])
    ours = penalise_repeats(x, seen_tokens(ids.tolist(), 40), penalty)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, x))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_transformers(p):
    x = logits(1)
    assert torch.equal(keep_top_p(x, p), TopPLogitsWarper(p)(None, x))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.999])
def test_min_p_is_transformers(p):
    x = logits(2)
    assert torch.equal(keep_min_p(x, p), MinPLogitsWarper(p)(None, x))


@pytest.mark.parametrize("k", [1, 7, 40, 99])
def test_top_k_is_transformers(k):
    x = logits(3)
    values, ids = keep_top_k(x, k)
    assert torch.equal(ids, ids.sort().values)
    back = torch.full_like(x, -torch.inf).scatter(-1, ids, values)
    assert torch.equal(back, TopKLogitsWarper(k)(None, x))


@given(seed=st.integers(0, 10**6), uniform=st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution(seed, uniform):
    x = logits(seed, rows=1, vocab=9)
    x[0, torch.randint(9, (4,), generator=torch.Generator().manual_seed(seed))] = -torch.inf
    token = int(draw(x, torch.tensor([uniform])))
    assert torch.isfinite(x[0, token])
    border = x[0].softmax(-1).cumsum(-1)
    if (border - uniform).abs().min() > 1e-12:
        assert token == slow_draw(x[0], uniform)


def test_draw_at_the_ends_takes_only_what_is_possible():
    x = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    assert int(draw(x, torch.tensor([0.0]))) == 1
    assert int(draw(x, torch.tensor([1 - 2**-53], dtype=torch.float64))) == 2


def test_draw_gives_the_distribution():
    x = logits(4, rows=1, vocab=5)
    uniform = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]
    share = draw(x.expand(20000, 5), uniform).bincount(minlength=5) / 20000
    assert torch.allclose(share.double(), x[0].softmax(-1), atol=2e-4)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=0.7),
        Decoding(temperature=1.3, top_k=9),
        Decoding(temperature=1.0, top_p=0.8),
        Decoding(temperature=0.9, top_k=12, top_p=0.9, min_p=0.05),
    ],
)
def test_choose_filters_as_transformers_does(decoding):
    x = logits(5, rows=200)
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = TemperatureLogitsWarper(decoding.temperature)(None, x)
    if decoding.top_k:
        y = TopKLogitsWarper(decoding.top_k)(None, y)
    if decoding.top_p < 1:
        y = TopPLogitsWarper(decoding.top_p)(None, y)
    if decoding.min_p:
        y = MinPLogitsWarper(decoding.min_p)(None, y)
    expected = [slow_draw(row, float(u)) for row, u in zip(y, uniform, strict=True)]
    assert choose(x, decoding, uniform).tolist() == expected


def test_choose_is_argmax_when_greedy():
    x = logits(6)
    assert choose(x, Decoding(), None).tolist() == x.argmax(-1).tolist()


def test_uniforms_belong_to_seed_prompt_occurrence_and_sample():
    def first(*key):
        return uniforms(*key).random(4)

    same = first(0, [1, 2], 0, 0)
    assert np.array_equal(same, first(0, (1, 2), 0, 0))
    for other in [(1, [1, 2], 0, 0), (0, [12], 0, 0), (0, [1, 2], 1, 0), (0, [1, 2], 0, 1), (0, [2, 1], 0, 0)]:
        assert not np.array_equal(same, first(*other))
