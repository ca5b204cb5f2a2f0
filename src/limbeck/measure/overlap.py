"""Overlap of generated text with references: chrF, BLEU, exact match, token F1; item by item and for the whole set.

Every function takes texts and, for each, one reference or several, and returns score columns in the same order.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from nltk.tokenize import word_tokenize
from nltk.translate import bleu_score
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF as SacreChrf

from limbeck.errors import DataError
from limbeck.measure.statistic import Statistic

__all__ = [
    "BLEU",
    "BLEU_TOKENISATION",
    "CHRF",
    "CHRF_SIGNATURE",
    "TOKENISATION",
    "References",
    "Tokeniser",
    "bleu_columns",
    "chrf_columns",
    "exact_match",
    "sentence_bleu",
    "token_f1",
    "words",
]

Floats = NDArray[np.float64]
References = Sequence[str | Sequence[str]]
Tokeniser = Literal["nltk", "space"]

TOKENISATION: Mapping[Tokeniser, str] = {
    "nltk": "nltk.word_tokenize(preserve_line=True)",
    "space": "split at white space",
}
"""Full name of each way to cut text into words, for the protocol of a result."""

BLEU_TOKENISATION = f"tokenised by {TOKENISATION['nltk']}"
"""Said beside every BLEU: with preserve_line=False, which needs downloaded data, several sentences give another one."""

CHRF_SIGNATURE = "case:mixed|eff:yes|nc:6|nw:0|space:no"
"""What changes a chrF, as sacrebleu writes it."""

_ORDERS = 4
_UNIFORM = (0.25, 0.25, 0.25, 0.25)


def words(text: str, tokeniser: Tokeniser = "nltk") -> list[str]:
    """Cut ``text`` into words. ``nltk`` is the Treebank tokeniser on the whole text, which needs no downloaded data."""
    return text.split() if tokeniser == "space" else list(word_tokenize(text, preserve_line=True))


def _pairs(texts: Sequence[str], references: References) -> Iterator[tuple[str, Sequence[str]]]:
    if len(texts) != len(references):
        raise DataError(f"{len(texts)} texts cannot be compared with {len(references)} references")
    for number, (text, right) in enumerate(zip(texts, references, strict=True)):
        right = (right,) if isinstance(right, str) else right
        if not right:
            raise DataError(f"text {number} has no reference to be compared with")
        yield text, right


# -- chrF -------------------------------------------------------------------------------------------------------------


def chrf_columns(texts: Sequence[str], references: References) -> dict[str, Floats]:
    """Return the character n-gram F-score (Popović 2015) by sacrebleu, orders 1 to 6, beta 2.

    Returns:
        ``chrf``, the score of each item alone from 0 to 100, and the counts that ``CHRF`` sums for the whole set.

    Raises:
        DataError: a text has no reference.
    """
    metric = SacreChrf()
    rows, single = [], []
    for text, right in _pairs(texts, references):
        # sacrebleu's public calls give figures only; resampling needs the counts that it sums.
        (counts,) = metric._extract_corpus_statistics([text], [[r] for r in right])
        rows.append(counts)
        single.append(metric._compute_f_score(counts))
    return {"chrf": np.array(single)} | _columns(CHRF.columns, rows)


def _chrf(sums: Floats) -> Floats:
    """(..., 18) counts of text, reference and matching n-grams -> (...) F-score, 0 to 100.

    Precision and recall are averaged over the orders that both sides have; recall counts twice.
    """
    text, reference, match = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    both = (text > 0) & (reference > 0)
    orders = np.maximum(both.sum(axis=-1), 1)
    precision = np.divide(match, text, out=np.zeros_like(match), where=both).sum(axis=-1) / orders
    recall = np.divide(match, reference, out=np.zeros_like(match), where=both).sum(axis=-1) / orders
    below = np.asarray(4 * precision + recall)
    return np.asarray(100 * np.divide(5 * precision * recall, below, out=np.zeros_like(below), where=below > 0))


CHRF = Statistic(
    "chrF",
    tuple(f"chrf_{kind}_{n}" for n in range(1, 7) for kind in ("text", "reference", "match")),
    _chrf,
    "higher",
    "chrF",
    (0, 100),
)
"""Corpus chrF from counts summed over items, as ``sacrebleu.metrics.CHRF().corpus_score``; not the mean over items."""


# -- BLEU -------------------------------------------------------------------------------------------------------------


def sentence_bleu(
    texts: Sequence[str],
    references: References,
    *,
    weights: Sequence[float] = _UNIFORM,
    tokeniser: Tokeniser = "nltk",
) -> Floats:
    """Return BLEU of each text alone (Papineni et al. 2002), by nltk with smoothing method 4 (Chen and Cherry 2014).

    Args:
        texts: what was generated.
        references: the right texts of each.
        weights: of the 1-grams, 2-grams and so on.
        tokeniser: how text is cut into words; it changes the figure.

    Returns:
        (n,) from 0 to 100; 0 where no word matches.

    Raises:
        DataError: a text has no reference.
    """
    smooth = bleu_score.SmoothingFunction().method4
    out = []
    for text, right in _pairs(texts, references):
        others = [words(r, tokeniser) for r in right]
        out.append(bleu_score.sentence_bleu(others, words(text, tokeniser), weights, smoothing_function=smooth))
    return 100 * np.array(out, dtype=np.float64)


def bleu_columns(texts: Sequence[str], references: References, *, tokeniser: Tokeniser = "nltk") -> dict[str, Floats]:
    """Return ``bleu``, as ``sentence_bleu`` gives it, and the counts that ``BLEU`` sums for the whole set.

    Raises:
        DataError: a text has no reference.
    """
    rows: list[Any] = []
    for text, right in _pairs(texts, references):
        cut, others = words(text, tokeniser), [words(r, tokeniser) for r in right]
        precisions = [bleu_score.modified_precision(others, cut, n) for n in range(1, _ORDERS + 1)]
        counts = [x for p in precisions for x in (p.numerator, p.denominator)]
        rows.append([*counts, len(cut), bleu_score.closest_ref_length(others, len(cut))])
    return {"bleu": sentence_bleu(texts, references, tokeniser=tokeniser)} | _columns(BLEU.columns, rows)


def _bleu(sums: Floats) -> Floats:
    """(..., 10) counts -> (...) corpus BLEU, 0 to 100, smoothed by nltk's method 4 with the length of the corpus.

    Method 4 gives the i-th order without a match ``ln(length) / (5 x 2**i)`` matches instead of none.
    """
    match, total = np.moveaxis(sums[..., :-2].reshape(*sums.shape[:-1], -1, 2), -1, 0)
    length, reference = sums[..., -2], sums[..., -1]
    none = match == 0
    made_up = np.log(np.maximum(length, 1))[..., None] / (5 * 2.0 ** none.cumsum(axis=-1))
    match = np.where(none, made_up, match)
    share = np.divide(match, total, out=np.zeros_like(match), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    ratio = np.divide(reference, length, out=np.full_like(length, np.inf), where=length > 0)
    score = np.exp(logs.mean(axis=-1) + np.minimum(1 - ratio, 0))  # a short text pays by the brevity penalty
    return np.asarray(np.where(none[..., 0], 0.0, 100 * score))


_COUNTS = tuple(f"bleu_{kind}_{n}" for n in range(1, _ORDERS + 1) for kind in ("match", "total"))

BLEU = Statistic(
    "corpus BLEU",
    (*_COUNTS, "bleu_words", "bleu_reference"),
    _bleu,
    "higher",
    "BLEU",
    (0, 100),
)
"""Corpus BLEU of orders 1 to 4 from counts summed over items, as nltk's ``corpus_bleu`` with method 4, times 100."""


# -- exact match and F1 -----------------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(texts: Sequence[str], references: References, *, normalise: bool = True) -> Floats:
    """Return (n,) 1 where a text equals a reference, by default after the normalisation of SQuAD (Rajpurkar et al.
    2016).

    That is lower case, without punctuation, articles and extra space, where anything is left then; else only space at
    the ends is ignored.
    """
    clean = _squad if normalise else str.strip
    return np.array([float(clean(t) in {clean(r) for r in right}) for t, right in _pairs(texts, references)])


def token_f1(texts: Sequence[str], references: References) -> Floats:
    """Return (n,) F1 of the words shared with the best reference, after the normalisation of SQuAD: 0 to 1."""
    return np.array([max(_f1(_squad(t), _squad(r)) for r in right) for t, right in _pairs(texts, references)])


def _squad(text: str) -> str:
    """Normalised text. Articles or punctuation alone stay as they are: else no answer at all would equal them."""
    lower = text.lower()
    bare = lower.translate(_PUNCTUATION)
    return next((" ".join(t.split()) for t in (_ARTICLES.sub(" ", bare), bare, lower) if t.strip()), "")


def _f1(text: str, reference: str) -> float:
    ours, theirs = text.split(), reference.split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _columns(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Floats]:
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return {name: table[:, i] for i, name in enumerate(names)}
