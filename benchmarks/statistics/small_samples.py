"""Coverage of 95 % intervals with few items, beside scipy's: a table in Markdown.

usage: python benchmarks/statistics/small_samples.py [--draws 2000]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simulation import coverage_of

from limbeck.measure.perplexity import NATS_PER_TOKEN, PERPLEXITY
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import Statistic, mean
from limbeck.measure.stats import interval

X = mean("x")
Sample = Callable[[np.random.Generator], Scores]


def values(draw: Callable[[np.random.Generator, int], np.ndarray], items: int) -> Sample:
    """Sample one column of ``items`` values."""
    return lambda random: Scores.of(map(str, range(items)), x=draw(random, items))


def tokens(items: int) -> Sample:
    """Sample nats of items of 5 to 60 tokens, the nats a token gamma distributed with mean 3."""

    def sample(random: np.random.Generator) -> Scores:
        length = random.integers(5, 61, items).astype(float)
        return Scores.of(map(str, range(items)), nll=length * random.gamma(4.0, 0.75, items), tokens=length)

    return sample


def ours(statistic: Statistic) -> Callable[[Scores, int], tuple[float, float]]:
    """Return the ends that Limbeck gives."""

    def ends(scores: Scores, _: int) -> tuple[float, float]:
        found = interval(scores, statistic)
        return found.low, found.high

    return ends


def scipys(statistic: Statistic, method: str) -> Callable[[Scores, int], tuple[float, float]]:
    """Return the ends of ``scipy.stats.bootstrap`` over items."""

    def ends(scores: Scores, seed: int) -> tuple[float, float]:
        columns = tuple(statistic.table(scores).T)

        def figure(*resampled: np.ndarray, axis: int = -1) -> np.ndarray:
            return statistic.of_sums(np.stack([c.sum(axis=axis) for c in resampled], axis=-1))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all items alike: scipy warns and gives nan
            found = stats.bootstrap(
                columns, figure, paired=True, n_resamples=999, method=method, rng=np.random.default_rng(seed)
            ).confidence_interval
        return float(found.low), float(found.high)

    return ends


CASES: tuple[tuple[str, Callable[[int], Sample], Statistic, float], ...] = (
    ("normal", lambda n: values(lambda r, m: r.normal(0, 1, m), n), X, 0.0),
    ("exponential", lambda n: values(lambda r, m: r.exponential(1, m), n), X, 1.0),
    ("gamma, shape 0.5", lambda n: values(lambda r, m: r.gamma(0.5, 1, m), n), X, 0.5),
    ("lognormal, sigma 1", lambda n: values(lambda r, m: r.lognormal(0, 1, m), n), X, float(np.exp(0.5))),
    (
        "half zeros, half exponential",
        lambda n: values(lambda r, m: r.exponential(1, m) * (r.random(m) < 0.5), n),
        X,
        0.5,
    ),
    ("t with 3 degrees of freedom", lambda n: values(lambda r, m: r.standard_t(3, m), n), X, 0.0),
    ("nats per token", tokens, NATS_PER_TOKEN, 3.0),
    ("perplexity", tokens, PERPLEXITY, float(np.exp(3.0))),
    ("share, 0.5", lambda n: values(lambda r, m: (r.random(m) < 0.5).astype(float), n), X, 0.5),
    ("share, 0.9", lambda n: values(lambda r, m: (r.random(m) < 0.9).astype(float), n), X, 0.9),
    ("share, 0.98", lambda n: values(lambda r, m: (r.random(m) < 0.98).astype(float), n), X, 0.98),
)


def main() -> None:
    """Print one row a case and a number of items."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=2000)
    draws = options.parse_args().draws
    print("| items are | items | Limbeck | cautioned | scipy, percentile | scipy, BCa | median width: Limbeck | BCa |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, sampler, statistic, truth in CASES:
        for items in (6, 12, 25, 50):
            sample = sampler(items)
            own, width = coverage_of(sample, truth, ours(statistic), draws)
            told = coverage_of(sample, 1.0, lambda s, _, f=statistic: (bool(interval(s, f).caution),) * 2, draws)[0]
            fewer = min(draws, 300)
            plain, _ = coverage_of(sample, truth, scipys(statistic, "percentile"), fewer)
            bca, bca_width = coverage_of(sample, truth, scipys(statistic, "BCa"), fewer)
            cells = [f"{x:.3f}" for x in (own, told, plain, bca)] + [f"{x:.2f}" for x in (width, bca_width)]
            print(f"| {name} | {items} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
