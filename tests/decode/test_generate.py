from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.decode.generate import fit_prompts, generate
from limbeck.decode.sample import uniforms
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError, RunError
from limbeck.model.patterns import Causal, Sliding
from tests.reference.slow_decode import slow_draw, slow_generate
from tests.reference.small_tokenizer import byte_level, metaspace
from tests.reference.twins import gpt2_config, hf_twin, llama_config, random_decoder

TOKENIZER = byte_level()
V = TOKENIZER.vocab_size
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7], [7], [30, 31]]


def model_of(family=gpt2_config, seed=0, dtype=torch.float64, **over):
    return random_decoder(family(V, **over), seed, dtype=dtype)


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_transformers(family, seed):
    model = model_of(family, seed, torch.float32)
    twin = hf_twin(model, eos_id=0)
    ours = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=20), batch_size=3)
    for prompt, (g,) in zip(PROMPTS, ours, strict=True):
        theirs = twin.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert list(g.ids) == theirs[0, len(prompt) :].tolist()


def test_greedy_with_repetition_penalty_is_transformers():
    model = model_of(seed=3, dtype=torch.float32)
    twin = hf_twin(model, eos_id=0)
    ours = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=20, repetition_penalty=1.4))
    plain = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=20))
    assert ours != plain
    for prompt, (g,) in zip(PROMPTS, ours, strict=True):
        theirs = twin.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=1.4, pad_token_id=0
        )
        assert list(g.ids) == theirs[0, len(prompt) :].tolist()


def test_log_prob_is_the_models_own_and_the_end_token_counts():
    model = model_of(llama_config, 1)
    (found,) = generate(model, TOKENIZER, [[5, 6]], Decoding(max_new_tokens=12), batch_size=1)
    end = found[0].ids[3]  # take a token that the model does make as its end token
    (short,) = generate(model, TOKENIZER, [[5, 6]], Decoding(max_new_tokens=12), end_ids=(end,))
    ids, total = slow_generate(model, [5, 6], 12, end_id=end)
    assert list(short[0].ids) == ids and short[0].stopped == "end" and short[0].tokens == len(ids)
    assert short[0].log_prob == pytest.approx(total, abs=1e-9) and short[0].score == short[0].log_prob
    text = TOKENIZER.decode([5, 6, *ids[:-1]])
    assert TOKENIZER.decode([5, 6]) + short[0].text == text


@pytest.mark.parametrize("pattern", [Causal(), Sliding(window=5, sinks=2), (Sliding(window=3), Causal())])
@pytest.mark.parametrize("family", [gpt2_config, llama_config])
def test_sampling_is_the_slow_reference(family, pattern):
    model = model_of(family, 2, pattern=pattern)
    decoding = Decoding(temperature=0.9, max_new_tokens=24, seed=5, samples=2)
    ours = generate(model, TOKENIZER, PROMPTS[:3], decoding, batch_size=4)
    for prompt, samples in zip(PROMPTS[:3], ours, strict=True):
        for number, g in enumerate(samples):
            random = uniforms(5, prompt, 0, number)
            picks = random.random(24)
            ids, total = slow_generate(
                model, prompt, 24, TOKENIZER.eos_id, lambda lp, step, p=picks: slow_draw(lp / 0.9, float(p[step]))
            )
            assert list(g.ids) == ids
            assert g.log_prob == pytest.approx(total, abs=1e-8)
        assert samples[0].ids != samples[1].ids


def test_what_a_batch_size_below_the_samples_gives_is_the_same():
    model = model_of()
    decoding = Decoding(temperature=1.2, top_k=20, max_new_tokens=9, samples=5)
    few, many = (generate(model, TOKENIZER, PROMPTS, decoding, batch_size=n) for n in (2, 64))
    assert [[g.ids for g in p] for p in few] == [[g.ids for g in p] for p in many]
    assert [g.log_prob for p in few for g in p] == pytest.approx([g.log_prob for p in many for g in p], abs=1e-9)


def test_equal_prompts_are_sampled_apart_and_seeds_differ():
    model = model_of()
    decoding = Decoding(temperature=1.0, max_new_tokens=16)
    first, second = generate(model, TOKENIZER, [[7], [7]], decoding)
    assert first[0].ids != second[0].ids
    (other,) = generate(model, TOKENIZER, [[7]], decoding.model_copy(update={"seed": 1}))
    assert other[0].ids != first[0].ids


def test_finished_rows_leave_the_batch(monkeypatch):
    from limbeck.decode.session import DecodingSession

    widths = []
    step = DecodingSession.step
    monkeypatch.setattr(
        DecodingSession, "step", lambda self, t, alive=None: (widths.append(len(t)), step(self, t, alive))[1]
    )
    model = model_of(seed=4)
    free = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=20), end_ids=())
    ends = (free[0][0].ids[2], free[2][0].ids[5])
    widths.clear()
    short = generate(model, TOKENIZER, PROMPTS, Decoding(max_new_tokens=20), end_ids=ends)
    assert min(p[0].tokens for p in short) < 20
    assert widths[0] == 5 and min(widths) < 5
    for whole, (g,) in zip(free, short, strict=True):
        assert whole[0].ids[: len(g.ids)] == g.ids


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=30), Decoding(max_new_tokens=12, beams=3, n_best=2)])
def test_streamed_pieces_join_to_the_text(make, decoding):
    tokenizer = make()
    model = random_decoder(gpt2_config(tokenizer.vocab_size), 1, dtype=torch.float64)
    pieces: dict[tuple[int, int], list[str]] = {}
    prompts = [tokenizer.encode("the cat"), tokenizer.encode("été à la mer")]

    def on_text(prompt: int, sample: int, text: str) -> None:
        pieces.setdefault((prompt, sample), []).append(text)

    found = generate(model, tokenizer, prompts, decoding, on_text=on_text)
    for i, prompt in enumerate(prompts):
        for s, g in enumerate(found[i]):
            assert "".join(pieces.get((i, s), [])) == g.text
            end = [t for t in g.ids if t != tokenizer.eos_id]
            assert tokenizer.decode(prompt) + g.text == tokenizer.decode([*prompt, *end])
    assert any(len(p) > 1 for p in pieces.values()) or decoding.beams > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_text_cuts_and_ends(beams):
    model = model_of(seed=2)
    (free,) = generate(model, TOKENIZER, [[5, 9]], Decoding(max_new_tokens=20, beams=beams))
    text = free[0].text
    stop = text[4:7]
    (cut,) = generate(model, TOKENIZER, [[5, 9]], Decoding(max_new_tokens=20, beams=beams, stop=(stop,)))
    if beams == 1:
        assert cut[0].text == text[: text.index(stop)] and cut[0].stopped == "stop" and cut[0].tokens < free[0].tokens
    assert stop not in cut[0].text


def test_stop_text_that_the_last_bytes_complete_counts():
    tokenizer = metaspace()
    newline = tokenizer.encode("a\n")[-1]
    model = random_decoder(gpt2_config(tokenizer.vocab_size), 1)
    with torch.no_grad():  # a model that always writes a newline byte
        model.norm.weight.zero_()
        model.norm.bias.copy_(model.embed.weight[newline] * 10)
    (g,) = generate(model, tokenizer, [[5]], Decoding(max_new_tokens=4, stop=("\n\n",)))
    assert (g[0].text, g[0].stopped, g[0].tokens) == ("", "stop", 2)


def test_model_is_left_as_it_was_and_can_train_after():
    model = model_of(llama_config, dropout=0.1).train()
    first = generate(model, TOKENIZER, [[5, 9]], Decoding(max_new_tokens=5))
    assert model.training and first == generate(model, TOKENIZER, [[5, 9]], Decoding(max_new_tokens=5))
    from limbeck.data.batch import Batch

    model(Batch.of_ids(torch.tensor([[1, 2, 3]]))).sum().backward()
    assert model.embed.weight.grad is not None


def test_prompts_that_do_not_fit():
    learned, rotary = model_of(context=16), model_of(llama_config, context=16)
    long = list(range(1, 15))
    for model in (learned, rotary):
        with pytest.raises(DataError, match=r"prompt 1 has 14 tokens and 8 new ones.*truncate_prompts"):
            generate(model, TOKENIZER, [[3], long], Decoding(max_new_tokens=8))
        with pytest.raises(ConfigError, match="leaves no room"):
            generate(model, TOKENIZER, [[3]], Decoding(max_new_tokens=16))
        with pytest.raises(DataError, match="prompt 0 is empty"):
            generate(model, TOKENIZER, [[]], Decoding(max_new_tokens=4))
    with pytest.raises(ConfigError, match="rotary"):
        generate(learned, TOKENIZER, [long], Decoding(max_new_tokens=8, beyond_context=True))
    beyond = generate(rotary, TOKENIZER, [long], Decoding(max_new_tokens=30, beyond_context=True), end_ids=())
    assert beyond[0][0].tokens == 30
    assert list(beyond[0][0].ids) == slow_generate(rotary, long, 30)[0]


def test_a_whole_context_is_used():
    model = model_of(context=16)
    (g,) = generate(model, TOKENIZER, [[1, 2, 3, 4]], Decoding(max_new_tokens=12), end_ids=())
    assert g[0].tokens == 12


def test_truncation_keeps_the_end_and_a_begin_token():
    model = model_of(context=16)
    cut = Decoding(max_new_tokens=10, truncate_prompts=True)
    long = list(range(1, 15))
    assert fit_prompts(model, [long, [0, *long], [4]], cut, TOKENIZER) == [
        [9, 10, 11, 12, 13, 14],
        [0, 10, 11, 12, 13, 14],
        [4],
    ]
    tight = Decoding(max_new_tokens=15, truncate_prompts=True)
    assert fit_prompts(model, [[0, *long]], tight, TOKENIZER) == [[14]]


@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=4), Decoding(max_new_tokens=4, beams=2)])
def test_logits_that_are_not_finite_are_an_error(decoding):
    model = model_of()
    with torch.no_grad():
        model.head.weight[3, 0] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        generate(model, TOKENIZER, [[1]], decoding)


def test_half_precision_weights_generate():
    model = model_of(dtype=torch.bfloat16)
    (g,) = generate(model, TOKENIZER, [[1, 2]], Decoding(max_new_tokens=6, temperature=1.0), end_ids=())
    assert g[0].tokens == 6 and np.isfinite(g[0].log_prob)


def test_no_prompts_no_generations():
    assert generate(model_of(), TOKENIZER, [], Decoding(max_new_tokens=4)) == []
