"""Train and decode while other work keeps every core busy: throughput as a share of the fair one, before and after.

Usage: python benchmarks/busy_cores.py [--loops 3] [--rounds 5] [--seconds 10] [--quick] [--json FILE]

Each arm runs in a process of its own, alone and then beside ``--loops`` busy loops a core; the fair share of what it
does alone is 1 / (1 + loops). "before" waits at barriers as libgomp does by default, "after" as Limbeck sets it
(``limbeck/__init__.py``). Arms take turns within a round, and medians are shown. Run it on quiet cores: what else runs
counts as load of both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness.stamp import stamp

WAITING = {"before": {"OMP_WAIT_POLICY": ""}, "after": {}}
WORK = ("training", "decoding")
BAR = 0.8
_LOOP = "while True: pass"


def work(kind: str, seconds: float, quick: bool) -> float:
    """Tokens a second of one kind of work, over so many seconds after a warm-up."""
    import torch

    from limbeck.decode.session import DecodingSession, evaluating
    from limbeck.model.config import DecoderConfig
    from limbeck.model.decoder import Decoder

    size = 64 if quick else 128
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=512, context=512, layers=4, hidden_size=size, heads=4))
    rows, length = 4, 64
    if kind == "training":
        from limbeck.data.batch import Batch

        batch = Batch.of_ids(torch.randint(0, 512, (rows, length)))
        labels = batch.next_token_labels().flatten()
        optimizer = torch.optim.AdamW(model.parameters())

        def once() -> int:
            loss = torch.nn.functional.cross_entropy(model(batch).flatten(0, 1), labels, ignore_index=-100)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return rows * length

        return _rate(once, seconds)
    with evaluating(model):

        def once() -> int:
            session = DecodingSession(model, [[1] * 8], 64)
            logits = session.start()
            for _ in range(64):
                logits = session.step(logits.argmax(dim=-1).tolist())
            return 64

        return _rate(once, seconds)


def _rate(once, seconds: float) -> float:
    once()
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        tokens += once()
    return tokens / (time.perf_counter() - start)


def measured(kind: str, arm: str, given: argparse.Namespace) -> float:
    """The same in a fresh process, whose threads wait as ``arm`` says."""
    here = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | WAITING[arm]
    command = [sys.executable, __file__, "--work", kind, "--seconds", str(given.seconds)]
    done = subprocess.run(command + ["--quick"] * given.quick, env=here, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=3, help="busy loops a core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="one round of a second: tries the benchmark itself")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if given.work:
        print(work(given.work, given.seconds, given.quick))
        return
    rounds = 1 if given.quick else given.rounds
    given.seconds = min(given.seconds, 1.0) if given.quick else given.seconds
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, dict[str, list[tuple[float, float]]]] = {k: {arm: [] for arm in WAITING} for k in WORK}
    for _ in range(rounds):
        for kind in WORK:
            for arm in WAITING:
                alone = measured(kind, arm, given)
                busy = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(given.loops * cores)]
                try:
                    rates[kind][arm].append((alone, measured(kind, arm, given)))
                finally:
                    for process in busy:
                        process.kill()
                        process.wait()
    out: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{cores} cores, {given.loops} busy loops each, {rounds} rounds in turn; bar: {BAR} of the fair share")
    print(f"{'work':10}{'waiting':9}{'alone tok/s':>13}{'busy tok/s':>12}{'of fair share':>15}")
    for kind, arms in rates.items():
        for arm, pairs in arms.items():
            share = statistics.median(busy / alone * (1 + given.loops) for alone, busy in pairs)
            alone, busy = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            row = {"alone_tokens_per_s": alone, "busy_tokens_per_s": busy, "of_fair_share": share}
            out.setdefault(kind, {})[arm] = row
            print(f"{kind:10}{arm:9}{alone:13.1f}{busy:12.1f}{share:15.2f}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "work": out}, indent=2) + "\n")


if __name__ == "__main__":
    main()
