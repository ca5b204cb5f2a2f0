"""Coverage and power of ``compare`` over one to eight seeds, beside a mixed model: a table in Markdown.

usage: python benchmarks/statistics/seeds.py [--draws 2000]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simulation import DESIGNS, outcome

SEEDS = (1, 2, 3, 5, 8)


def main() -> None:
    """Print one row a design and a number of seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=2000)
    draws = options.parse_args().draws
    print("| design | seeds | coverage | power | power, variances known | power, REML | coverage, REML |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for design in DESIGNS:
        for seeds in SEEDS:
            o = outcome(design, seeds, draws)
            peers = (o.oracle, o.mixed, o.mixed_coverage) if design.figure == "mean" else ()
            cells = [f"{x:.3f}" for x in (o.coverage, o.power, *peers)] + ["-"] * (3 - len(peers))
            print(f"| {design.name} | {seeds} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
