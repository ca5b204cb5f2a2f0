from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import DataError
from limbeck.measure.by_position import PositionRange, nats_by_position, position_ranges, recomputed_nats
from limbeck.model.patterns import Sliding
from tests.reference.twins import gpt2_config, llama_config, random_decoder

TEXTS = [torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 23)]


def nats(model, text) -> list[float]:
    logits = model(Batch.of_ids(torch.tensor([text])))[0].log_softmax(-1)
    return [-float(logits[i, text[i + 1]]) for i in range(len(text) - 1)]


def test_ranges_double_past_the_context():
    assert [(r.low, r.high) for r in position_ranges(8, 40)] == [(1, 4), (4, 8), (8, 16), (16, 32), (32, 40)]
    assert [(r.low, r.high) for r in position_ranges(8, 6)] == [(1, 4), (4, 6)]


@torch.no_grad()
def test_nats_are_summed_where_the_predicted_token_stands():
    model = random_decoder(llama_config(61, pattern=Sliding(window=6, sinks=2)))
    ranges = position_ranges(8, 40)
    scores = nats_by_position(model, TEXTS, ranges)
    for r in ranges:
        expected = [sum(nats(model, text)[r.low - 1 : r.high - 1]) for text in TEXTS]
        counts = [max(0, min(r.high, len(text)) - r.low) for text in TEXTS]
        assert scores[f"tokens {r.low}-{r.high - 1}"].tolist() == counts
        assert scores[f"nll {r.low}-{r.high - 1}"] == pytest.approx(expected, abs=1e-4)
        assert r.statistic.value(scores) == pytest.approx(sum(expected) / sum(counts), abs=1e-5)


@torch.no_grad()
def test_a_recomputed_token_sees_its_window_alone():
    model = random_decoder(gpt2_config(61, context=10))
    text = TEXTS[0]
    found = recomputed_nats(model, text, [1, 9, 30], window=10)
    for p, value in zip([1, 9, 30], found, strict=True):
        begin = max(0, p - 10)
        logits = model(Batch.of_ids(torch.tensor([text[begin:p]])))[0, -1].log_softmax(-1)
        assert value == pytest.approx(-float(logits[text[p]]), abs=1e-5)


def test_what_cannot_be_scored_is_refused():
    model = random_decoder(gpt2_config(61, context=10))
    with pytest.raises(DataError, match="texts of two tokens or more"):
        nats_by_position(model, [[1]], [PositionRange(1, 4)])
    with pytest.raises(DataError, match="a position to predict must lie between 1 and 39"):
        recomputed_nats(model, TEXTS[0], [0], window=4)
    with pytest.raises(DataError, match="longer than the model's 10 learned positions"):
        nats_by_position(model, TEXTS, position_ranges(10, 40))
