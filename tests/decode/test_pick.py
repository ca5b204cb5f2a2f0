from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.decode.pick import Picker
from limbeck.decode.settings import Decoding
from limbeck.kernels import native

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here")

WAYS = [
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.3, "top_k": 1},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.5, "top_k": 5000},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.97},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.2, "top_k": 3000, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", [7, 257, 8192])
def test_the_compiled_choice_is_the_reference(way: dict[str, float], size: int) -> None:
    random = np.random.default_rng(size)
    picker = Picker(Decoding(**way))  # type: ignore[arg-type]
    for spread in (0.3, 4.0, 60.0):
        logits = torch.from_numpy(random.normal(size=(64, size)) * spread).float()
        logits[0] = logits[0].round()  # equal scores
        logits[1, 1:] = -torch.inf
        logits[2, ::2] = -torch.inf
        uniforms = None if not picker.decoding.temperature else [0.0, *random.random(62), 1 - 1e-9]
        seen = random.integers(size, size=(64, 9)).tolist()
        ours = picker(logits, uniforms, seen)
        theirs = picker._by_torch(logits, uniforms, seen)
        if uniforms is None or "top_k" not in way:  # which of equal scores top-k keeps is torch's own affair
            assert ours.tokens[0] == theirs.tokens[0]
        assert ours.tokens[1:] == theirs.tokens[1:]
        np.testing.assert_allclose(ours.log_probs[1:], theirs.log_probs[1:], rtol=1e-5, atol=1e-5)


def test_of_equal_scores_the_earlier_stay() -> None:
    logits = torch.zeros(3, 100)
    picker = Picker(Decoding(temperature=1.0, top_k=4))
    assert picker(logits, [0.0, 0.5, 0.99], []).tokens == [0, 2, 3]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[6], WAYS[9]], ids=str)
def test_logits_that_are_not_finite_are_told(bad: float, way: dict[str, float]) -> None:
    logits = torch.randn(2, 50)
    logits[1, 17] = bad
    picker = Picker(Decoding(**way))  # type: ignore[arg-type]
    picked = picker(logits, [0.5, 0.5] if picker.decoding.temperature else None, [[1], [2]])
    assert np.isfinite(picked.log_probs[0]) and not np.isfinite(picked.log_probs[1])
    assert all(0 <= t < 50 for t in picked.tokens)


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    uniforms = (np.arange(1000) + 0.5) / 1000
    picked = Picker(Decoding(temperature=1.0))(logits.expand(1000, 4), uniforms.tolist(), [])
    assert np.bincount(picked.tokens).tolist() == [100, 200, 300, 400]
