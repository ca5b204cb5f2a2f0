"""What lm-eval asks, answered without lm-eval: windows, borders, contexts that are empty or too long, stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import Batch
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.integrations.requests import Answers, decoding_of, rolling_windows
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level, metaspace

TEXTS = ["the cat sat on the mat. " * 4, "once", "été à la mer, 🌊 naïve café"]


def answers(model: Decoder | None = None, tokenizer: Tokenizer | None = None, **more: Any) -> Answers:
    return Answers(decoder().double() if model is None else model, tokenizer or byte_level(), **more)


def likelihood(model: Decoder, given_ids: list[int], wanted: list[int]) -> float:
    with torch.no_grad():
        logits = model(Batch.of_ids(torch.tensor([[*given_ids, *wanted[:-1]]])))[0].log_softmax(dim=-1)
    return sum(float(logits[len(given_ids) - 1 + i, token]) for i, token in enumerate(wanted))


# -- windows ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(2, 20))
def test_every_token_is_scored_once_and_no_window_reads_more_than_it_may(size: int, longest: int) -> None:
    ids = list(range(1, size + 1))
    cut = list(rolling_windows(ids, 0, longest))
    assert [token for _, wanted in cut for token in wanted] == ids
    for context, wanted in cut:
        read = [*context, *wanted]
        assert 1 <= len(context) and len(read) - 1 <= longest
        assert read == list(range(read[0], read[0] + len(read)))  # a piece of the text as it is
    if size > longest:
        assert sum(map(len, cut[-1])) - 1 == longest  # the last window reaches back as far as it can


def test_windows_are_those_of_the_harness() -> None:
    """The example in the documentation of lm-eval's ``loglikelihood_rolling``: ten tokens, four at once."""
    found = list(rolling_windows(list(range(10)), -1, 4))
    assert found == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]


@pytest.mark.parametrize("over", [{}, MODERN], ids=["gpt2", "llama"])
def test_rolling_is_our_perplexity_on_the_same_windows(over: dict[str, Any]) -> None:
    """Texts within a window, and one of whole windows: there both cut alike. We count the token that is not read."""
    model, tok = decoder(**over).double(), byte_level()
    longest = 21
    long = "the cat sat on the mat and the dog ran to the end of the road" * 3
    while len(tok.encode(long)) % longest:
        long = long[:-1]
    texts = [long, "the cat", "mat. "]
    assert len(tok.encode(long)) >= 2 * longest
    protocol = PerplexityProtocol(context=longest + 1, stride=longest, begin=True, end=False)
    ours = perplexity(model, tok, {str(i): t for i, t in enumerate(texts)}, protocol)
    found = answers(model, longest=longest).rolling(texts)
    assert found == pytest.approx((-ours.scores["nll"]).tolist(), abs=1e-10)


def test_a_last_window_that_reaches_back_is_scored_as_it_says() -> None:
    model, tok = decoder().double(), byte_level()
    ids = tok.encode(TEXTS[0])
    expected = sum(likelihood(model, list(a), list(b)) for a, b in rolling_windows(ids, tok.eos_id, 32))
    assert len(ids) % 32 and answers(model).rolling([TEXTS[0], ""]) == pytest.approx([expected, 0.0], abs=1e-10)


# -- continuations ----------------------------------------------------------------------------------------------------


def test_a_continuation_is_cut_out_of_the_whole_text() -> None:
    model, tok = decoder().double(), byte_level()
    ((value, _),) = answers(model).loglikelihood([("the cat", " sat")])
    whole, context = tok.encode("the cat sat"), tok.encode("the cat")
    assert value == pytest.approx(likelihood(model, context, whole[len(context) :]), abs=1e-10)


def test_spaces_before_a_continuation_belong_to_it() -> None:
    one, other = answers().loglikelihood([("the cat ", "sat"), ("the cat", " sat")])
    assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("context", ["", " "])
def test_an_empty_context_is_the_prefix_token(context: str) -> None:
    model, tok = decoder().double(), byte_level()
    ((value, _),) = answers(model).loglikelihood([(context, "the cat")])
    assert value == pytest.approx(likelihood(model, [tok.eos_id], tok.encode(context + "the cat")), abs=1e-10)


def test_a_border_inside_a_token_is_counted_and_cut_by_force() -> None:
    model, tok = decoder().double(), byte_level()
    context, continuation = "th", "e"
    assert len(tok.encode("the")) == 1
    asked = answers(model)
    ((value, _),) = asked.loglikelihood([(context, continuation)])
    assert value == pytest.approx(likelihood(model, tok.encode("th"), tok.encode("e")), abs=1e-10)
    assert asked.counts["borders_merged"] == 1 and "1 of 1 continuations share a token" in asked.told()[0]


def test_a_begin_token_stands_first_once_and_no_space_is_made_up() -> None:
    tok = metaspace()
    model = decoder(**{**MODERN, "vocab_size": tok.vocab_size}).double()
    asked = answers(model, tok)
    ((value, _),) = asked.loglikelihood([("the", " a")])
    ids = tok.encode("the")
    wanted = tok.encode("the a")[len(ids) :]
    assert value == pytest.approx(likelihood(model, [tok.bos_id or 0, *ids], wanted), abs=1e-10)
    rendered = answers(model, tok, specials=True)
    assert rendered.loglikelihood([("<s>the", " a")])[0][0] == pytest.approx(value, abs=1e-12)


def test_long_contexts_lose_their_beginning_which_is_told_and_counted() -> None:
    model, tok = decoder().double(), byte_level()
    asked = answers(model)
    context, continuation = TEXTS[0] * 2, " dog"
    (found, same) = asked.loglikelihood([(context, continuation), ("the cat", " dog")])
    wanted = tok.encode(context.rstrip() + " " + continuation)[len(tok.encode(context.rstrip())) :]
    kept = tok.encode(context.rstrip())[-(33 - len(wanted)) :]
    assert found[0] == pytest.approx(likelihood(model, kept, wanted), abs=1e-10)
    assert asked.told() == ["1 of 2 contexts were longer than 32 tokens allow and lost their beginning"]
    assert same[0] == answers(model).loglikelihood([("the cat", " dog")])[0][0]


def test_a_begin_token_outlives_the_cut() -> None:
    tok = metaspace()
    model = decoder(**{**MODERN, "vocab_size": tok.vocab_size}).double()
    ((value, _),) = answers(model, tok).loglikelihood([("the a " * 20 + "the", " a")])
    ids = tok.encode("the a " * 20 + "the")
    wanted = tok.encode("the a " * 20 + "the a")[len(ids) :]
    kept = [tok.bos_id or 0, *ids[-(32 - len(wanted)) :]]
    assert value == pytest.approx(likelihood(model, kept, wanted), abs=1e-10)


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(DataError, match="likelihood of an empty continuation"):
        answers().loglikelihood([("the", "")])
    with pytest.raises(DataError, match="a continuation has .* tokens, more than the 32 that can be read"):
        answers().loglikelihood([("the", " qzx" * 20)])
    with pytest.raises(ConfigError, match="can read 2 to 32 tokens of this model at once, not 33"):
        answers(longest=33)
    classes = decoder(tied=False, classes=Classes(labels=("a", "b")))
    with pytest.raises(ConfigError, match="the model has a classification head"):
        answers(classes)


@given(st.permutations(range(4)), st.integers(1, 5))
def test_no_answer_depends_on_batch_size_or_order(order: list[int], batch_size: int) -> None:
    model = decoder().double()
    pairs = [("the cat", " sat"), ("the cat", " ran"), ("", "once"), (TEXTS[0], " road")]
    alone = [answers(model).loglikelihood([pair])[0] for pair in pairs]
    found = answers(model, batch_size=batch_size).loglikelihood([pairs[i] for i in order])
    for i, (value, greedy) in zip(order, found, strict=True):
        assert value == pytest.approx(alone[i][0], abs=1e-10) and greedy == alone[i][1]


# -- generation -------------------------------------------------------------------------------------------------------


def test_generations_end_before_a_stop_and_stay_in_order() -> None:
    model, tok = decoder().double(), byte_level()
    asks = [(t, {"until": ["a", "zz"], "max_gen_toks": 8}) for t in TEXTS]
    asks.insert(1, ("the cat", {"until": "e", "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}))
    texts = answers(model, batch_size=2).generate_until(asks)
    for (context, options), text in zip(asks, texts, strict=True):
        new = options["max_gen_toks"]
        settings = Decoding(max_new_tokens=new, stop=tuple(options["until"]))
        ids = tok.encode(context)[-(32 - new) :]
        assert text == generate(model, tok, [ids], settings)[0][0].text
        assert not any(stop in text for stop in options["until"])


def test_prompts_are_cut_and_generations_shortened_which_is_told() -> None:
    asked = answers()
    asked.generate_until([(TEXTS[0] * 2, {"until": [], "max_gen_toks": 40}), ("", {"until": [], "max_gen_toks": 4})])
    assert asked.told() == [
        "1 of 2 contexts were longer than 32 tokens allow and lost their beginning",
        "1 of 2 generations had room for 16 tokens, fewer than the task asks",
    ]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, {"max_new_tokens": 256}),
        ({"until": "x", "do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"stop": ("x",)}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.5, "top_k": 3}, {"temperature": 0.5, "top_k": 3}),
        ({"do_sample": True, "temperature": 0.0}, {"temperature": 0.0}),
        ({"max_tokens": 7, "max_gen_toks": 5, "until": ["", "\n"]}, {"max_new_tokens": 5, "stop": ("\n",)}),
        ({"num_beams": 3, "length_penalty": 0.5}, {"beams": 3, "length_penalty": 0.5}),
    ],
)
def test_generation_kwargs_become_a_decoding(asked: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert decoding_of(asked, 4) == Decoding(**{"max_new_tokens": 256, "seed": 4, **wanted})


def test_options_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ConfigError, match="a task asks for 'typical_p' when generating"):
        decoding_of({"typical_p": 0.2})
    with pytest.raises(ConfigError, match="max_new_tokens"):
        decoding_of({"max_gen_toks": 0})


def test_samples_repeat_by_seed_and_differ_among_repeats() -> None:
    asks = [("the cat", {"until": [], "do_sample": True, "temperature": 2.0, "max_gen_toks": 12})] * 2
    model = decoder()
    first, second = answers(model, seed=1).generate_until(asks)
    assert first != second and answers(model, seed=1).generate_until(asks) == [first, second]
    assert answers(model, seed=2).generate_until(asks) != [first, second]


def test_every_answer_is_kept_for_a_cache() -> None:
    kept: list[tuple[str, Any, Any]] = []
    asked = answers(keep=lambda *entry: kept.append(entry))
    scored = asked.loglikelihood([("the", " cat")])
    rolled = asked.rolling(["the cat"])
    options = {"until": ["."], "max_gen_toks": 2}
    written = asked.generate_until([("the", options)])
    assert kept == [
        ("loglikelihood", ("the", " cat"), scored[0]),
        ("loglikelihood_rolling", ("the cat",), rolled[0]),
        ("generate_until", ("the", options), written[0]),
    ]
    assert np.isfinite(rolled[0])
