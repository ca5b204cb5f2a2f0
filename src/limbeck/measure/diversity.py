"""How varied generated texts are: distinct n-grams and self-BLEU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nltk.translate import bleu_score
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.measure.overlap import Tokeniser, words
from limbeck.measure.statistic import Statistic, ratio

__all__ = ["corpus_distinct", "distinct", "distinct_columns", "self_bleu"]

Floats = NDArray[np.float64]


def distinct_columns(texts: Sequence[str], *, order: int = 2, tokeniser: Tokeniser = "nltk") -> dict[str, Floats]:
    """Return distinct n-grams and all n-grams of each text (Li et al. 2016), the columns of ``distinct``."""
    grams = [_grams(text, order, tokeniser) for text in texts]
    return {
        f"distinct_{order}": np.array([float(len(set(g))) for g in grams]),
        f"grams_{order}": np.array([float(len(g)) for g in grams]),
    }


def distinct(order: int = 2) -> Statistic:
    """Return distinct n-grams per n-gram, each text's counted apart: 1 where no text repeats itself."""
    return ratio(f"distinct_{order}", f"grams_{order}", name=f"distinct-{order}", bounds=(0, 1))


def corpus_distinct(texts: Sequence[str], *, order: int = 2, tokeniser: Tokeniser = "nltk") -> float:
    """Return distinct n-grams per n-gram of all texts together.

    It falls as texts are added and is no function of sums over texts: compare equal numbers of texts only, and make no
    interval of it.
    """
    grams = [gram for text in texts for gram in _grams(text, order, tokeniser)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], *, limit: int = 100, seed: int = 0, tokeniser: Tokeniser = "nltk") -> Floats:
    """Return BLEU of each text with others as its references (Zhu et al. 2018), smoothed by nltk's method 4.

    Args:
        texts: two at least.
        limit: at most so many others are references of one, drawn by ``seed``. Cost and figure grow with their number.
        seed: of the draw.
        tokeniser: how text is cut into words.

    Returns:
        (n,) from 0 to 100; near 100 where all say the same.

    Raises:
        DataError: there is one text only.
    """
    if len(texts) < 2:
        raise DataError("self-BLEU compares texts with each other: it takes two at least")
    random, smooth = np.random.default_rng(seed), bleu_score.SmoothingFunction().method4
    cut = [words(text, tokeniser) for text in texts]
    out = []
    for i, text in enumerate(cut):
        others = np.delete(np.arange(len(cut)), i)
        if len(others) > limit:
            others = random.choice(others, limit, replace=False)
        out.append(bleu_score.sentence_bleu([cut[j] for j in others], text, smoothing_function=smooth))
    return 100 * np.array(out, dtype=np.float64)


def _grams(text: str, order: int, tokeniser: Tokeniser) -> list[tuple[str, ...]]:
    cut = words(text, tokeniser)
    return list(zip(*(cut[i:] for i in range(order)), strict=False))
