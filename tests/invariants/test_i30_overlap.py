"""I30: chrF is sacrebleu's, BLEU is nltk's with smoothing method 4, on texts of the kind that models write."""

from __future__ import annotations

import pytest
from nltk.tokenize import word_tokenize
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu
from sacrebleu.metrics import CHRF as SacreChrf

from limbeck.measure.overlap import BLEU, BLEU_TOKENISATION, CHRF, bleu_columns, chrf_columns, sentence_bleu
from limbeck.measure.scores import Scores

RIGHT = [
    "An asset is a resource that the company owns, such as cash or buildings.",
    "Revenue is recognised when it is earned; cash may come later.",
    "It's $5.20 per share.",
    "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:",
    "Yes.",
    "naïve café 🌊",
]
MADE = [
    "An asset is something the company owns, such as cash.",
    "Revenue is recognised when cash comes.",
    "It is $5 per share. It is $5 per share. It is $5 per share.",
    "Shall I compare thee to a rose?\nThou art more fair:",
    "",
    "cafe",
]
METHOD4 = SmoothingFunction().method4


def test_chrf_is_sacrebleus_corpus_score():
    scores = Scores.of(map(str, range(6)), **chrf_columns(MADE, RIGHT))
    assert CHRF.value(scores) == pytest.approx(SacreChrf().corpus_score(MADE, [RIGHT]).score, abs=1e-9)
    assert CHRF.value(scores) != pytest.approx(scores["chrf"].mean(), abs=0.1)  # the mean over items is another figure


def test_bleu_is_nltks():
    cut = [[word_tokenize(t, preserve_line=True) for t in texts] for texts in (MADE, RIGHT)]
    theirs = [nltk_sentence_bleu([r], m, smoothing_function=METHOD4) for m, r in zip(*cut, strict=True)]
    assert sentence_bleu(MADE, RIGHT).tolist() == pytest.approx([100 * t for t in theirs], abs=1e-12)
    scores = Scores.of(map(str, range(6)), **bleu_columns(MADE, RIGHT))
    whole = corpus_bleu([[r] for r in cut[1]], cut[0], smoothing_function=METHOD4)
    assert BLEU.value(scores) == pytest.approx(100 * whole, abs=1e-9)
    assert "preserve_line=True" in BLEU_TOKENISATION


@pytest.mark.realdata
def test_chrf_on_the_real_sonnets(real_data):
    """Another poem in the place of each: the corpus score of the course's metric."""
    text = (real_data / "cs224n" / "sonnets.txt").read_text(encoding="utf-8")
    poems = [p.strip() for p in text.split("\n\n") if len(p) > 200][:24]
    made, right = poems[:12], poems[12:24]
    scores = Scores.of(map(str, range(12)), **chrf_columns(made, right))
    assert CHRF.value(scores) == pytest.approx(SacreChrf().corpus_score(made, [right]).score, abs=1e-9)
