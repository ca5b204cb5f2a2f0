from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config import build
from limbeck.errors import ConfigError, DataError
from limbeck.measure.perplexity import NATS_PER_TOKEN, PERPLEXITY, PerplexityProtocol, nats_per, perplexity
from limbeck.measure.scores import Scores
from limbeck.measure.stats import interval
from tests.reference.slow_perplexity import slow_nll
from tests.reference.small_tokenizer import byte_level, metaspace
from tests.reference.twins import gpt2_config, llama_config, random_decoder

TEXTS = {
    "a": "the cat sat on the mat, and the dog ran to the end of the road.",
    "b": "été à la mer 🌊🌊 naïve café",
    "c": "a",
    "d": " leading\n\nand  double  space ",
}
TOKENIZER = byte_level()


def model_of(family=gpt2_config, tokenizer=TOKENIZER, **over):
    return random_decoder(family(tokenizer.vocab_size, **over), 1, dtype=torch.float64)


@pytest.mark.parametrize(("context", "stride"), [(64, 0), (16, 0), (16, 5), (16, 1), (9, 9), (2, 1), (2, 2)])
@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_every_protocol_is_the_slow_reference(context, stride, begin, end):
    model = model_of()
    head, tail = [TOKENIZER.bos_id] * begin, [TOKENIZER.eos_id] * end
    each = perplexity(model, TOKENIZER, TEXTS, PerplexityProtocol(context=context, stride=stride, begin=begin, end=end))
    for name, nll, tokens in zip(each.scores.ids, each.scores["nll"], each.scores["tokens"], strict=True):
        expected = slow_nll(model, head + TOKENIZER.encode(TEXTS[name]) + tail, context, stride or context)
        assert (nll, tokens) == pytest.approx(expected, abs=1e-9)
    whole = "\n\n".join(TEXTS.values())
    protocol = PerplexityProtocol(mode="stream", context=context, stride=stride, begin=begin, end=end)
    stream = perplexity(model, TOKENIZER, TEXTS, protocol)
    expected = slow_nll(model, head + TOKENIZER.encode(whole) + tail, context, stride or context)
    assert (stream.total("nll"), stream.total("tokens")) == pytest.approx(expected, abs=1e-9)
    assert stream.total("text_tokens") == len(TOKENIZER.encode(whole)) + len(tail)


def test_counts_and_units():
    found = perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol(corpus="four", split="all"))
    assert found.scores.ids == ("a", "b", "c", "d") and not found.unscored and found.truncated == 0
    assert found.total("bytes") == sum(len(t.encode()) for t in TEXTS.values())
    assert found.total("words") == sum(len(t.split()) for t in TEXTS.values())
    assert found.total("tokens") == found.total("text_tokens") == sum(len(TOKENIZER.encode(t)) for t in TEXTS.values())
    nll = found.total("nll")
    assert found.nats_per("token") == NATS_PER_TOKEN.value(found.scores) == nll / found.total("tokens")
    assert found.nats_per("word") == pytest.approx(nll / found.total("words"))
    assert found.bits_per_byte == pytest.approx(nll / found.total("bytes") / math.log(2))
    for unit in ("token", "word", "byte"):
        by = perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol(unit=unit))
        assert by.value == pytest.approx(math.exp(found.nats_per(unit)) if found.nats_per(unit) < 700 else math.inf)


def test_what_is_not_predicted_does_not_make_words_cheaper():
    found = perplexity(model_of(), TOKENIZER, {"a": TEXTS["a"]}, PerplexityProtocol(begin=False))
    tokens, text_tokens = found.total("tokens"), found.total("text_tokens")
    assert tokens == text_tokens - 1
    assert found.nats_per("word") == pytest.approx(found.nats_per("token") * text_tokens / found.total("words"))


@given(
    text=st.text(alphabet="abc \n🌊é", min_size=1, max_size=60),
    context=st.integers(2, 9),
    stride=st.integers(1, 9),
    make=st.sampled_from([byte_level, metaspace]),
)
def test_windows_of_a_stream_share_out_every_word_and_byte(text, context, stride, make):
    tokenizer = make()
    model = _small(make)
    protocol = PerplexityProtocol(mode="stream", context=context, stride=min(stride, context), begin=True)
    found = perplexity(model, tokenizer, {"x": text}, protocol)
    spelled = tokenizer.decode(tokenizer.encode(text))
    assert found.total("bytes") == len(spelled.encode()) and found.total("words") == len(text.split())
    assert found.total("text_tokens") == len(tokenizer.encode(text))


_MODELS = {}


def _small(make):
    if make not in _MODELS:
        config = gpt2_config(make().vocab_size, layers=1, hidden_size=8, heads=1, context=16)
        _MODELS[make] = random_decoder(config, 0)
    return _MODELS[make]


def test_long_documents_are_cut_into_windows_or_truncated():
    model, text = model_of(), " ".join([TEXTS["a"]] * 3)
    ids = TOKENIZER.encode(text)
    whole = perplexity(model, TOKENIZER, {"x": text}, PerplexityProtocol(context=20, stride=10))
    assert whole.total("tokens") == len(ids) and whole.truncated == 0
    cut = perplexity(model, TOKENIZER, {"x": text, "y": "a"}, PerplexityProtocol(context=20, truncate=True))
    assert cut.truncated == 1 and cut.scores["tokens"].tolist() == [19, len(TOKENIZER.encode("a"))]
    kept = TOKENIZER.decode(ids[:19])
    assert cut.scores["bytes"][0] == len(kept.encode()) and cut.scores["words"][0] == len(kept.split())


def test_items_without_a_prediction_are_named():
    found = perplexity(model_of(), TOKENIZER, {"x": "a", "y": "the cat", "z": ""}, PerplexityProtocol(begin=False))
    assert found.unscored == ("x", "z") and found.scores.ids == ("y",)
    for mode in ("documents", "stream"):
        with pytest.raises(DataError, match="no token of these texts"):
            perplexity(model_of(), TOKENIZER, {"z": ""}, PerplexityProtocol(begin=False, mode=mode))
    with pytest.raises(DataError, match="data set is empty"):
        perplexity(model_of(), TOKENIZER, {}, PerplexityProtocol())


def test_protocols_that_cannot_be():
    for values, word in (
        ({"context": 8, "stride": 9}, "skips tokens"),
        ({"context": 1}, "predicts nothing"),
        ({"mode": "stream", "truncate": True}, "truncate is for documents"),
        ({"stride": -1}, "stride"),
    ):
        with pytest.raises(ConfigError, match=word):
            build(PerplexityProtocol, values)
    with pytest.raises(ConfigError, match="64 learned positions"):
        perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol(context=65))
    with pytest.raises(ConfigError, match="stride of 65 skips"):
        perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol(stride=65))
    longer = perplexity(model_of(llama_config, context=16), TOKENIZER, TEXTS, PerplexityProtocol(context=40))
    assert longer.protocol.context == 40  # rotary positions may be measured beyond the trained length


def test_the_result_carries_its_protocol():
    found = perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol(corpus="four", split="test"))
    values = json.loads(json.dumps(found.describe()))
    assert values["protocol"]["context"] == values["protocol"]["stride"] == 64
    assert values["protocol"]["corpus"] == "four" and values["protocol"]["split"] == "test"
    assert TOKENIZER.fingerprint[:16] in values["tokenisation"] and values["tokens"] == found.total("tokens")
    assert values["items"] == 4 and values["nats_per_byte"] == found.nats_per("byte")


def test_intervals_of_every_unit():
    found = perplexity(model_of(), TOKENIZER, TEXTS, PerplexityProtocol())
    for unit in ("token", "word", "byte"):
        span = interval(found.scores, nats_per(unit))
        assert span.low <= span.value <= span.high and span.value == found.nats_per(unit)


def test_a_model_that_diverged_is_no_figure():
    model = model_of()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(DataError, match="'nll' of item 'a' is nan"):
        perplexity(model, TOKENIZER, TEXTS, PerplexityProtocol())


def test_perplexity_is_exp_of_the_sum_over_the_sum():
    scores = Scores.of(["a", "b"], nll=[6.0, 1.0], tokens=[2.0, 5.0])
    assert PERPLEXITY.value(scores) == pytest.approx(math.exp(7 / 7), rel=1e-15)
    nats, figure = (interval(scores, s) for s in (NATS_PER_TOKEN, PERPLEXITY))
    assert figure.low == pytest.approx(math.exp(nats.low), rel=1e-6)
    assert figure.high == pytest.approx(math.exp(nats.high), rel=1e-6)
    assert PERPLEXITY.better == "lower"
