"""How well each proximity tells labelled paraphrases from other pairs: AUC, and precision and recall by threshold.

Usage: python scripts/paraphrase_thresholds.py models/base-14m-gpt2 quora/quora-train-20k.csv --rows 2000
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from limbeck.formats.load import load_bundle
from limbeck.synth.filters import EditDistance, KeepsNames, KeepsNumbers, LengthRatio
from limbeck.synth.proximity import Scorer
from limbeck.synth.text import relative_edit_distance
from limbeck.tasks.classification import labels_of
from limbeck.tasks.paraphrase import Paraphrase

Floats = NDArray[np.float64]


def area(score: Floats, truth: NDArray[np.bool_]) -> float:
    """Share of (paraphrase, other) pairs that ``score`` puts in the right order."""
    places = np.argsort(np.argsort(np.where(np.isfinite(score), score, -99.0)))
    ones = int(truth.sum())
    return float((places[truth].sum() - ones * (ones - 1) / 2) / (ones * (len(truth) - ones)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--rows", type=int, default=2000)
    given = parser.parse_args()
    rows = Paraphrase().read(given.pairs, columns={}, limit=given.rows, separator="<|endoftext|>")
    truth = np.array(labels_of(rows, "is_duplicate", ("0", "1"))) == 1
    pairs = [(str(row.fields["sentence1"]), str(row.fields["sentence2"])) for row in rows]
    bundle = load_bundle(given.model)
    raw = Scorer(bundle.model, bundle.tokenizer)
    centred = raw.centred([a for a, _ in pairs])
    scores = {
        "cosine, centred": centred.similarities(pairs),
        "cosine, as it is": raw.similarities(pairs),
        "mutual likelihood": raw.mutual(pairs),
        "edit distance, negated": -np.array([relative_edit_distance(a, b) for a, b in pairs]),
    }
    print(f"{len(rows)} pairs, {truth.mean():.3f} paraphrases")
    for name, score in scores.items():
        print(f"{name}: AUC {area(score, truth):.3f}")
        for q in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
            bound = float(np.quantile(score[truth], q))
            kept = score >= bound
            print(f"  from {bound:.2f}: kept {kept.mean():.3f}, precision {truth[kept].mean():.3f}, recall {1 - q:.1f}")
    for one in (KeepsNumbers(), KeepsNames(), LengthRatio(), EditDistance(least=0.15)):
        drops = one.drops(rows)
        kept = np.array([row.id not in drops for row in rows])
        print(f"{one.name}: kept {kept.mean():.3f}, precision {truth[kept].mean():.3f}")


if __name__ == "__main__":
    main()
