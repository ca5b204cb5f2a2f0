"""I29: every comparison carries an interval, paired where items match, the number of seeds, and honest words."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.measure.overlap import BLEU, CHRF, bleu_columns, chrf_columns
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean
from limbeck.measure.stats import compare, interval, verdict

POEMS = [f"line {n} of a poem that goes on and on, {'so' * (n % 3)} it does" for n in range(12)]


def nats(seed: int, items: int, shift: float = 0.0) -> Scores:
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 60, items).astype(float)
    noise = np.random.default_rng(seed + 1000 * bool(shift)).normal(3 + shift, 0.1, items)
    return Scores.of(map(str, range(items)), nll=tokens * noise, tokens=tokens)


def test_a_published_kind_of_claim_is_not_repeated():
    """Two systems that differ by noise over twelve poems: the words say that nothing was shown."""
    random = np.random.default_rng(0)
    one, other = ([" ".join(random.permutation(p.split())) for p in POEMS] for _ in "ab")
    ids = [str(n) for n in range(12)]
    a, b = (Scores.of(ids, **chrf_columns(texts, POEMS)) for texts in (one, other))
    found = compare(a, b, CHRF)
    assert found.better is None and found.low < 0 < found.high
    text = verdict(found, ("rank 8", "rank 64"))
    assert text.startswith("no difference shown at 12 items: rank 64 - rank 8 is ") and "1 seed" in text


@pytest.mark.parametrize(("columns", "statistic"), [(chrf_columns, CHRF), (bleu_columns, BLEU)])
def test_a_true_difference_in_a_corpus_figure_is_found(columns, statistic):
    ids = [str(n) for n in range(12)]
    good = [p.replace("goes", "went") for p in POEMS]
    bad = [" ".join(reversed(p.split())) for p in POEMS]
    found = compare(Scores.of(ids, **columns(bad, POEMS)), Scores.of(ids, **columns(good, POEMS)), statistic)
    assert found.better == "b" and found.low > 0
    assert verdict(found, ("bad", "good")).startswith("good is better by ")


def test_words_hold_figure_interval_level_items_and_seeds():
    with_teacher, without = [nats(1, 100, 0.001)] * 3, [nats(1, 100, 0.12)] * 3
    found = compare(with_teacher, without, NATS_PER_TOKEN)
    text = verdict(found, ("distilled", "plain"))
    assert text.startswith("distilled is better by 0.1") and "], 95 %, 100 items, 3 seeds, p = " in text


def test_pairing_is_by_item_id_not_by_place():
    a = nats(2, 50)
    b = Scores.of(a.ids, nll=a["nll"] * 1.02, tokens=a["tokens"])
    moved = b.select(sorted(b.ids, key=hash))
    assert compare(a, b, NATS_PER_TOKEN).to_json() == compare(a, moved, NATS_PER_TOKEN).to_json()
    assert compare(a, b, NATS_PER_TOKEN).better == "a"


def test_a_ratio_is_of_sums_and_so_is_its_interval():
    """One long item among short ones: its weight is that of its tokens."""
    scores = Scores.of("abc", nll=[1.0, 1.0, 400.0], tokens=[1.0, 1.0, 100.0])
    span = interval(scores, NATS_PER_TOKEN)
    assert span.value == pytest.approx(402 / 102) and span.low == 0 and span.caution == "too few items for 95 %"
    means = Scores.of("abc", nats=scores["nll"] / scores["tokens"])
    assert interval(means, mean("nats")).value == pytest.approx(2.0)  # the mean of means is another figure
