"""I26: no score and no generated token depends on batch size, order or company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, llama_config, random_decoder

TOKENIZER = byte_level()
CONFIGS = [family(TOKENIZER.vocab_size) for family in (gpt2_config, llama_config)]
MODELS = [random_decoder(config, 6, dtype=torch.float64) for config in CONFIGS]
PROMPTS = st.lists(st.lists(st.integers(1, 250), min_size=1, max_size=9), min_size=1, max_size=6)
DECODINGS = [
    Decoding(max_new_tokens=8),
    Decoding(max_new_tokens=8, temperature=1.1, samples=2, seed=3),
    Decoding(max_new_tokens=8, temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
    Decoding(max_new_tokens=6, beams=2, n_best=2),
]


@pytest.mark.parametrize("model", MODELS, ids=["gpt2", "llama"])
@pytest.mark.parametrize("decoding", DECODINGS)
@settings(max_examples=12)
@given(prompts=PROMPTS, batch_size=st.integers(1, 9), shuffle=st.randoms(use_true_random=False))
def test_generation(model, decoding, prompts, batch_size, shuffle):
    together = [[g.ids for g in some] for some in generate(model, TOKENIZER, prompts, decoding, batch_size=64)]
    apart = [[g.ids for g in some] for some in generate(model, TOKENIZER, prompts, decoding, batch_size=batch_size)]
    assert together == apart
    order = list(range(len(prompts)))
    shuffle.shuffle(order)
    moved = generate(model, TOKENIZER, [prompts[i] for i in order], decoding, batch_size=batch_size)
    by_prompt = sorted((tuple(prompts[i]), [g.ids for g in some]) for i, some in zip(order, moved, strict=True))
    assert by_prompt == sorted((tuple(p), ids) for p, ids in zip(prompts, together, strict=True))
    (first,) = generate(model, TOKENIZER, prompts[:1], decoding)
    assert [g.ids for g in first] == together[0]


@pytest.mark.parametrize("model", MODELS, ids=["gpt2", "llama"])
@pytest.mark.parametrize("protocol", [PerplexityProtocol(), PerplexityProtocol(context=12, stride=5, mode="stream")])
def test_perplexity(model, protocol):
    words = "the cat sat on the mat and the dog ran to the end of the road".split()
    random = np.random.default_rng(0)
    texts = {str(n): " ".join(random.choice(words, random.integers(1, 14))) for n in range(9)}
    whole = perplexity(model, TOKENIZER, texts, protocol, batch_size=64)
    for batch_size in (1, 2, 5):
        other = perplexity(model, TOKENIZER, texts, protocol, batch_size=batch_size)
        assert other.scores.ids == whole.scores.ids
        assert np.allclose(other.scores["nll"], whole.scores["nll"], atol=1e-10, rtol=0)
    if protocol.mode == "documents":
        moved = dict(sorted(texts.items(), key=lambda item: item[1]))
        scores = perplexity(model, TOKENIZER, moved, protocol, batch_size=3).scores.select(texts)
        assert np.allclose(scores["nll"], whole.scores["nll"], atol=1e-10, rtol=0)
        alone = perplexity(model, TOKENIZER, {"4": texts["4"]}, protocol).scores
        assert alone["nll"][0] == pytest.approx(whole.scores.select(["4"])["nll"][0], abs=1e-10)
