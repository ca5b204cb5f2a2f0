"""The mean-squares peer of ``simulation.py`` beside statsmodels' mixed model, fitted by REML to the same draws.

usage: python benchmarks/statistics/mixed_model.py [--draws 20]

It needs statsmodels, which no extra brings: pip install statsmodels.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.regression.mixed_linear_model import MixedLM

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simulation import DESIGNS, draw

Floats = NDArray[np.float64]
SEEDS = (2, 3, 5)


def of_mean_squares(a: Floats, b: Floats) -> float:
    """Return the standard error of the difference from mean squares, the seeds' component kept at 0 or above."""
    seeds, n = a.shape
    items = float((b.mean(0) - a.mean(0)).var(ddof=1)) / n
    over = sum(float(g.mean(1).var(ddof=1)) / seeds for g in (a, b))
    left = [g - g.mean(0) - g.mean(1, keepdims=True) + g.mean() for g in (a, b)]
    noise = sum(float((r**2).sum()) for r in left) / ((n - 1) * (seeds - 1) * n * seeds)
    return float(np.sqrt(items + max(0.0, over - noise)))


def of_statsmodels(a: Floats, b: Floats) -> float:
    """Return the standard error that REML gives with crossed effects of items, runs, and items within a system."""
    (seeds, n), rows = a.shape, []
    for system, side in enumerate((a, b)):
        rows += [
            (side[s, i], system, f"i{i}", f"r{system}-{s}", f"i{i}-{system}") for s in range(seeds) for i in range(n)
        ]
    frame = pd.DataFrame(rows, columns=["score", "system", "item", "run", "reaction"])
    parts = {name: f"0 + C({name})" for name in ("item", "run", "reaction")}
    model = MixedLM.from_formula("score ~ system", groups=np.ones(len(frame)), vc_formula=parts, data=frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # components at 0 lie on the border of what may be
        return float(model.fit(reml=True).bse["system"])


def main() -> None:
    """Print, a design and a number of seeds, the ratio of both standard errors: median and the whole range."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=20)
    draws = options.parse_args().draws
    print("| design | seeds | standard error, mean squares / statsmodels: median | least | most |")
    print("|---|---:|---:|---:|---:|")
    for design in (d for d in DESIGNS if d.pairing == "items" and d.figure == "mean" and not d.shared):
        for seeds in SEEDS:
            random = np.random.default_rng([1, seeds])
            pairs = [draw(design, seeds, random) for _ in range(draws)]
            ratios = [of_mean_squares(a, b) / of_statsmodels(a, b) for a, b in pairs]
            cells = " | ".join(f"{f(ratios):.3f}" for f in (np.median, np.min, np.max))
            print(f"| {design.name} | {seeds} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
