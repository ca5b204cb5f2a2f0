"""Coverage and power over seeds from mean squares: normal data need no items, so 20,000 draws take seconds.

usage: python benchmarks/statistics/mean_squares.py [--draws 20000]
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from limbeck.measure.uncertainty import whole_variance

SEEDS = (2, 3, 4, 5, 6, 8)
DESIGNS = (  # name, seed spread, spread of the items' reaction, noise, effect, paired seeds
    ("no seed spread", 0.0, 0.0, 0.3, 0.15, False),
    ("seed spread 0.04", 0.04, 0.0, 0.3, 0.15, False),
    ("seed spread 0.1", 0.1, 0.0, 0.3, 0.15, False),
    ("seed spread 0.3", 0.3, 0.0, 0.3, 0.45, False),
    ("seed spread 0.1, items react by 0.3", 0.1, 0.3, 0.3, 0.15, False),
    ("seed spread 0.15, items react by 0.3", 0.15, 0.3, 0.3, 0.15, False),
    ("seed spread 0.2, items react by 0.6, little noise", 0.2, 0.6, 0.1, 0.3, False),
    ("paired seeds, no seed spread", 0.0, 0.0, 0.3, 0.15, True),
    ("paired seeds, spread 0.1", 0.1, 0.0, 0.3, 0.15, True),
)


def judge(design: tuple, seeds: int, draws: int, items: int = 50) -> list[float]:
    """Return coverage and power of Limbeck, power with variances known, power and coverage of REML."""
    _, seed_sd, system_sd, noise_sd, effect, paired = design
    random, groups = np.random.default_rng(seeds), 1 if paired and seeds > 2 else 2
    noise = 2 * noise_sd**2 / (items * seeds)
    of_seeds, of_items = 2 * seed_sd**2 / seeds, system_sd**2 / items
    seen = effect + random.normal(0, np.sqrt(noise + of_seeds + of_items), draws)
    df, left_df = groups * (seeds - 1), groups * (seeds - 1) * (items - 1)
    a = (noise + of_items) * random.chisquare(items - 1, draws) / (items - 1)
    v = (noise + of_seeds) * random.chisquare(df, draws) / df
    r = noise * random.chisquare(left_df, draws) / left_df
    dfs = {"seed_df": df, "item_df": items - 1, "least_df": df / groups}
    own = np.array([whole_variance(*x, **dfs) for x in zip(a, v, r, strict=True)])
    half = stats.t.ppf(0.975, own[:, 1]) * np.sqrt(own[:, 0])
    above = v > r
    reml = np.where(above, a + v - r, a)
    with np.errstate(all="ignore"):
        reml_df = np.where(above, reml**2 / (a**2 / (items - 1) + v**2 / df + r**2 / left_df), items - 1)
    theirs = stats.t.ppf(0.975, reml_df) * np.sqrt(reml)
    known = 1.96 * np.sqrt(noise + of_seeds + of_items)
    held = [np.abs(seen - effect) <= half, seen > half, seen > known, seen > theirs, np.abs(seen - effect) <= theirs]
    return [float(x.mean()) for x in held]


def main() -> None:
    """Print one row a design and a number of seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=20000)
    draws = options.parse_args().draws
    print("| design | seeds | coverage | power | power, variances known | power, REML | coverage, REML |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for design in DESIGNS:
        for seeds in SEEDS:
            print(f"| {design[0]} | {seeds} | " + " | ".join(f"{x:.3f}" for x in judge(design, seeds, draws)) + " |")


if __name__ == "__main__":
    main()
