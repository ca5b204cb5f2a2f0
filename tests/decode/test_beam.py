from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from tests.reference.slow_decode import slow_beam
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, hf_twin, llama_config, random_decoder

TOKENIZER = byte_level()
V = 16  # rows of the models: a small vocabulary ends often


def model_of(family, seed, dtype=torch.float32):
    model = random_decoder(family(V, tied=False), seed, scale=0.15, dtype=dtype)
    with torch.no_grad():  # raise the end token's logit by about 1.2, so that hypotheses end at many lengths
        everywhere = Batch.of_ids(torch.randint(V, (8, 12), generator=torch.Generator().manual_seed(seed)))
        mean = model(everywhere, read=lambda hidden, head: hidden.mean((0, 1)))
        model.head.weight[0] += 1.2 * mean / mean.square().sum()
    return model


def theirs_of(twin, prompt, new, beams, penalty, n_best, repetition=1.0):
    out = twin.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new,
        num_beams=beams, length_penalty=penalty, do_sample=False,
        num_return_sequences=n_best, pad_token_id=1, eos_token_id=0, early_stopping=False,
        repetition_penalty=repetition, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = []
    for ids, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        ids = ids[len(prompt) :]
        found.append((tuple(ids[: ids.index(0) + 1] if 0 in ids else ids[:new]), score))
    return found


def agree(ours, theirs):
    """Equal hypotheses in order; where two differ, their scores are a tie in fp32."""
    for (a, sa), (b, sb) in zip(ours, theirs, strict=True):
        assert sa == pytest.approx(sb, rel=2e-5, abs=2e-5)
        if a != b:
            close = [s for _, s in ours if abs(s - sa) < 2e-5 * max(1, abs(sa))]
            assert len(close) > 1, (a, b, sa, sb)


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize("seed", range(12))
def test_beams_are_transformers(family, seed):
    model = model_of(family, seed)
    twin = hf_twin(model, eos_id=0)
    beams, penalty = 2 + seed % 4, (0.6, 1.0, 1.5)[seed % 3]
    prompts = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7]]
    decoding = Decoding(max_new_tokens=14, beams=beams, length_penalty=penalty, n_best=beams)
    ours = generate(model, TOKENIZER, prompts, decoding, batch_size=2 * beams)
    for prompt, found in zip(prompts, ours, strict=True):
        agree([(g.ids, g.score) for g in found], theirs_of(twin, prompt, 14, beams, penalty, beams))


def test_hypotheses_end_at_many_lengths_here():
    """The comparison above means something: hypotheses end by the end token and by length."""
    decoding, prompts = Decoding(max_new_tokens=14, beams=4, n_best=4), [[5, 9, 2], [7], [3]]
    models = [model_of(family, seed) for family in (gpt2_config, llama_config) for seed in range(4)]
    found = [g for model in models for p in generate(model, TOKENIZER, prompts, decoding) for g in p]
    assert len({g.tokens for g in found if g.stopped == "end"}) > 4
    assert sum(g.stopped == "length" for g in found) > 4


def test_a_penalty_on_repeats_is_transformers():
    decoding = Decoding(max_new_tokens=10, beams=3, n_best=3, repetition_penalty=1.3)
    penalised = 0
    for seed in range(4):
        model = model_of(llama_config, seed)
        (ours,) = generate(model, TOKENIZER, [[5, 9, 2]], decoding)
        twin = hf_twin(model, eos_id=0)
        agree([(g.ids, g.score) for g in ours], theirs_of(twin, [5, 9, 2], 10, 3, 1.0, 3, repetition=1.3))
        penalised += sum(g.score * g.tokens < g.log_prob - 1e-3 for g in ours)
    assert penalised > 2


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_beams_are_the_slow_reference(penalty):
    for seed in range(4):
        model = model_of(gpt2_config, seed, torch.float64)
        decoding = Decoding(max_new_tokens=7, beams=3, length_penalty=penalty, n_best=3)
        prompts = [[5, 9, 2], [7]]
        ours = generate(model, TOKENIZER, prompts, decoding)
        for prompt, found in zip(prompts, ours, strict=True):
            expected = slow_beam(model, prompt, 7, 3, penalty, 0)
            assert [g.ids for g in found] == [ids for ids, _ in expected]
            assert [g.score for g in found] == pytest.approx([s for _, s in expected], abs=1e-9)
            assert all(g.log_prob == pytest.approx(g.score * g.tokens**penalty) for g in found)


def test_batched_prompts_are_single_ones():
    model = model_of(llama_config, 5, torch.float64)
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9], [7]]
    decoding = Decoding(max_new_tokens=10, beams=3, n_best=2)
    together = generate(model, TOKENIZER, prompts, decoding, batch_size=100)
    alone = generate(model, TOKENIZER, prompts, decoding, batch_size=1)
    assert [[g.ids for g in p] for p in together] == [[g.ids for g in p] for p in alone]
    assert [g.ids for g in together[1]] == [g.ids for g in together[3]]


def test_more_beams_than_continuations():
    """At the first step a tiny vocabulary offers fewer continuations than there are beams."""
    tiny = random_decoder(gpt2_config(4), 0, dtype=torch.float64)
    (found,) = generate(tiny, TOKENIZER, [[1]], Decoding(max_new_tokens=3, beams=6, n_best=6), end_ids=(0,))
    scores = [g.score for g in found]
    assert len({g.ids for g in found}) == 6 and scores == sorted(scores, reverse=True)


def test_one_beam_kept_is_no_worse_than_greedy():
    model = model_of(gpt2_config, 3, torch.float64)
    for prompt in ([4], [5, 6], [9, 8, 7]):
        (greedy,) = generate(model, TOKENIZER, [prompt], Decoding(max_new_tokens=8), end_ids=())
        (best,) = generate(model, TOKENIZER, [prompt], Decoding(max_new_tokens=8, beams=5), end_ids=())
        assert best[0].log_prob >= greedy[0].log_prob - 1e-9


def test_stop_texts_end_beams():
    model = model_of(gpt2_config, 2, torch.float64)
    (free,) = generate(model, TOKENIZER, [[5]], Decoding(max_new_tokens=8, beams=3, n_best=3), end_ids=())
    stop = free[0].text[2]
    short = Decoding(max_new_tokens=8, beams=3, n_best=3, stop=(stop,), length_penalty=-1)
    (cut,) = generate(model, TOKENIZER, [[5]], short, end_ids=())
    assert any(g.stopped == "stop" for g in cut)
    assert all(stop not in g.text for g in cut)
    assert all(stop not in TOKENIZER.decode(g.ids[:-1]) for g in cut)
