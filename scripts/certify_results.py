"""Write docs/results/raw/certify.md: error rates, power and items of ``limbeck certify``, by replay and simulation.

    python scripts/certify_results.py RUN [--replays 1000] > docs/results/raw/certify.md

RUN is a run of ``limbeck quantize``: the signs of its real paired differences are flipped.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import binom

from limbeck.measure.scores import Scores
from limbeck.run import Run, machine, source
from limbeck.study.harms import Margins, harms
from limbeck.study.sequential import bet, smallest_difference

BAR = math.log(1 / 0.05)


def main() -> None:
    """Run everything and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--replays", type=int, default=1000)
    asked = parser.parse_args()
    commit, cpu = source()["commit"], machine()["cpu"]
    command = f"python scripts/certify_results.py {Path(asked.run).name} --replays {asked.replays}"
    print("# Error rates and power of `limbeck certify`\n")
    print(f"Made by `{command}` at commit {str(commit)[:12]} on {cpu}, one core.")
    print("The test and its sources are described in `study/sequential.py`; seeds are fixed.\n")
    replays(Run.open(Path(asked.run)), asked.replays)
    simulations(asked.replays)


def replays(run: Run, count: int) -> None:
    """Flip the signs of real differences: no harm is then true."""
    a, b = (Scores.read(run.scores / f"{name}.jsonl") for name in ("original", "quantized"))
    told = run.report()
    print(f"## False alarms: {count:,} sign flips of real differences\n")
    print(
        f"{told['technique']['kind'].upper()} of `{Path(told['model']).name}`, {len(a):,} items. A false alarm is a bet"
    )
    print("that ever reaches 20, at any item.\n")
    print("| harm | margin | items | false alarms | 95 % interval |")
    print("|---|---:|---:|---:|---:|")
    random = np.random.default_rng(0)
    for harm in harms(a, b, Margins()):
        flips = random.choice([-1.0, 1.0], size=(count, len(a)))
        planned = 0.05 if harm.answers else None
        rate = float((bet(harm.differences * flips, harm.margin, planned).harm.max(axis=-1) >= BAR).mean())
        print(f"| {harm.name} | {harm.margin:g} {harm.unit} | {len(a):,} | {rate:.1%} | {wilson(rate, count)} |")
    print()


def simulations(count: int) -> None:
    """Power and items against McNemar's exact test, and false alarms of both answers."""
    print(f"## Power and items: {count:,} simulated pairs of runs\n")
    print(
        "Answers that change: the share of items on which one model is right and the other wrong. Fixed: items that the"
    )
    print(
        "exact McNemar test at 5 % needs for 90 % power, two-sided, and one-sided beside it. Items: mean until the test"
    )
    print("stops, of at most twice the fixed number. Planned rate: the true one, or the default of 5 %.\n")
    columns = (
        "change",
        "harm",
        "fixed (2, 1)",
        "planned",
        "called worse",
        "called harmless",
        "items",
        "of fixed (2, 1)",
    )
    print("| " + " | ".join([*columns, "no harm: called worse", "no harm: called harmless"]) + " |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    random = np.random.default_rng(1)
    for discordant, harm in ((0.01, 0.005), (0.02, 0.01), (0.03, 0.01), (0.05, 0.01), (0.05, 0.02)):
        two, one = (fixed(discordant, harm, level) for level in (0.025, 0.05))
        for planned in dict.fromkeys((discordant, 0.05)):
            worse, none, used = stopped(random, count, 2 * two, discordant, harm, harm, planned)
            alarm, right, _ = stopped(random, count, 2 * two, discordant, 0.0, harm, planned)
            print(
                f"| {discordant:.0%} | {harm:.1%} | {two:,}, {one:,} | {planned:.0%} | {worse:.1%} | {none:.1%} "
                f"| {used:,.0f} | {used / two:.2f}, {used / one:.2f} | {alarm:.1%} | {right:.1%} |"
            )
    print("\n## Smallest difference in right answers that a set can show\n")
    print("90 % power, 5 % error, one harm.\n")
    print("| items | 1 % change | 2 % change | 5 % change |\n|---:|---:|---:|---:|")
    for items in (872, 1319, 2210, 20_212):
        print(f"| {items:,} | " + " | ".join(f"{smallest_difference(items, d):.2%}" for d in (0.01, 0.02, 0.05)) + " |")


def stopped(
    random: np.random.Generator, count: int, items: int, discordant: float, harm: float, margin: float, planned: float
) -> tuple[float, float, float]:
    """Shares called worse and harmless, and mean items used."""
    worse = none = used = 0.0
    for _ in range(0, count, 100):
        u = random.random((100, items))
        up, down = (discordant + harm) / 2, (discordant - harm) / 2
        found = bet(np.where(u < up, 1.0, np.where(u < up + down, -1.0, 0.0)), margin, planned)
        a, b = (np.where(c >= BAR, np.arange(items), items).min(axis=-1) for c in (found.harm, found.no_harm))
        worse += float((a < b).sum())
        none += float((b < a).sum())
        used += float(np.minimum(np.minimum(a, b) + 1, items).sum())
    total = 100 * len(range(0, count, 100))
    return worse / total, none / total, used / total


def fixed(discordant: float, harm: float, level: float) -> int:
    """Items at which McNemar's exact test has 90 % power."""
    low, high = 10, 50_000
    while high - low > 5:
        middle = (low + high) // 2
        pairs = np.arange(middle + 1)
        weight = binom.pmf(pairs, middle, discordant)
        least = binom.isf(level, pairs, 0.5) + 1
        power = float((weight * binom.sf(least - 1, pairs, (discordant + harm) / 2 / discordant)).sum())
        low, high = (low, middle) if power >= 0.9 else (middle, high)
    return high


def wilson(rate: float, count: int) -> str:
    """The Wilson interval of a share."""
    z = 1.96
    middle, half = rate + z * z / 2 / count, z * math.sqrt(rate * (1 - rate) / count + z * z / 4 / count**2)
    low, high = ((middle + s * half) / (1 + z * z / count) for s in (-1, 1))
    return f"{low:.1%} to {high:.1%}"


if __name__ == "__main__":
    sys.exit(main())
