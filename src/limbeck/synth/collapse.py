"""Collapse of a model that learns from its own text: less variety, other lengths, more self-similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from limbeck.measure.diversity import corpus_distinct, self_bleu
from limbeck.synth.text import words

__all__ = ["LEAST_DISTINCT", "MOST_SELF_BLEU", "Variety", "collapsed", "variety"]

LEAST_DISTINCT = 0.7
"""Share of the first round's distinct bigrams below which a round counts as collapsed."""

MOST_SELF_BLEU = 1.3
"""Multiple of the first round's self-BLEU above which it does."""

_LENGTHS = (0.5, 2.0)
_COMPARED = 200  # texts: distinct n-grams and self-BLEU compare equal numbers only


@dataclass(frozen=True, slots=True)
class Variety:
    """How varied some texts are.

    Attributes:
        texts: how many were looked at.
        distinct_2: distinct bigrams per bigram of all together.
        self_bleu: mean BLEU of each with the others as references, 0 to 100.
        words: mean length.
    """

    texts: int
    distinct_2: float
    self_bleu: float
    words: float

    def describe(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


def variety(texts: Sequence[str], *, limit: int = _COMPARED, seed: int = 0) -> Variety:
    """Measure at most ``limit`` of ``texts``, drawn by ``seed``; of fewer than two the self-BLEU is 0."""
    chosen = list(texts)
    if len(chosen) > limit:
        order = np.random.default_rng(seed).permutation(len(chosen))[:limit]
        chosen = [chosen[i] for i in sorted(order)]
    own = float(self_bleu(chosen, limit=50, seed=seed).mean()) if len(chosen) > 1 else 0.0
    length = float(np.mean([len(words(text)) for text in chosen])) if chosen else 0.0
    return Variety(len(chosen), corpus_distinct(chosen) if chosen else 0.0, own, length)


def collapsed(now: Sequence[str], first: Sequence[str], *, seed: int = 0) -> list[str]:
    """Return what has collapsed since the ``first`` round, a sentence each; equal numbers of texts are compared."""
    size = min(len(now), len(first), _COMPARED)
    if size < 2:
        return []
    out = []
    new, old = variety(now, limit=size, seed=seed), variety(first, limit=size, seed=seed)
    if new.distinct_2 < LEAST_DISTINCT * old.distinct_2:
        out.append(f"distinct bigrams fell from {old.distinct_2:.2f} to {new.distinct_2:.2f}")
    if new.self_bleu > MOST_SELF_BLEU * old.self_bleu:
        out.append(f"self-BLEU rose from {old.self_bleu:.1f} to {new.self_bleu:.1f}")
    least, most = _LENGTHS
    if not least * old.words <= new.words <= most * old.words:
        out.append(f"the mean length went from {old.words:.1f} to {new.words:.1f} words")
    return out
