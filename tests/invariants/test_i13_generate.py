"""I13 in generation: with a cache as with one full forward a token, for every pattern, past a rolling window."""

from __future__ import annotations

import pytest
import torch

from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.model.patterns import Causal, LogSparse, Sliding
from tests.reference.slow_decode import slow_beam, slow_generate
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, llama_config, random_decoder

TOKENIZER = byte_level()
PATTERNS = [Causal(), Sliding(window=4), Sliding(window=3, sinks=2), (Sliding(window=5, sinks=1), Causal())]
PATTERNS += [LogSparse(window=2, sinks=1), Sliding(window=3, sinks=2, sink_distance="cache")]
PROMPTS = [[5, 9, 2], [7], list(range(20, 33)), [1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(2))
def test_greedy_tokens_and_log_probabilities(family, pattern, seed):
    model = random_decoder(family(TOKENIZER.vocab_size, pattern=pattern), seed, dtype=torch.float64)
    found = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=30), batch_size=4)
    for prompt, (g,) in zip(PROMPTS, found, strict=True):
        ids, log_prob = slow_generate(model, prompt, 30, TOKENIZER.eos_id)
        assert list(g.ids) == ids
        assert g.log_prob == pytest.approx(log_prob, abs=1e-9)


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_beams_whose_rows_move_in_the_cache(family, pattern):
    model = random_decoder(family(20, pattern=pattern, tied=False), 1, scale=0.15, dtype=torch.float64)
    prompts = [[5, 9, 2], [7], list(range(1, 14))]
    decoding = Decoding(max_new_tokens=9, beams=3, n_best=3, length_penalty=0.7)
    found = generate(model, TOKENIZER, prompts, decoding, batch_size=100)
    for prompt, some in zip(prompts, found, strict=True):
        expected = slow_beam(model, prompt, 9, 3, 0.7, TOKENIZER.eos_id)
        assert [g.ids for g in some] == [ids for ids, _ in expected]
        assert [g.score for g in some] == pytest.approx([score for _, score in expected], abs=1e-9)
