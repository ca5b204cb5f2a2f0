"""Throughput of a server: clients at once against the same requests one after another, in turn.

Usage: python benchmarks/serve.py [MODEL] [--clients 8] [--tokens 64] [--rounds 5] [--quick] [--json FILE]

The server is ``limbeck serve`` in a process of its own; MODEL is a folder, a run or a Hub id, and without one the
preset 10m is served with random weights. Requests are greedy, go on for all their tokens, and are answered whole over
HTTP on loopback. The ratio is taken round by round; the median and the range are told.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
from harness.stamp import stamp

from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.load import save_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture

NEVER = "\0\0"  # a stop text that nothing spells
PROMPT = "Once upon a time there was a hen who could count to ten, but no farther."


@contextmanager
def served(model: str, rows: int) -> Iterator[str]:
    """The address of a server."""
    argv = [sys.executable, "-m", "limbeck", "serve", model, "--port", "0", "--name", "served", "--rows", str(rows)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+/v1", line):
                yield found[0]
                return
        raise SystemExit("the server did not start: " + "".join(lines))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def tokens_per_second(address: str, requests: int, at_once: int, tokens: int) -> float:
    """Generated tokens a second of ``requests`` requests, ``at_once`` of them on their way."""
    with httpx2.Client(timeout=600) as client, ThreadPoolExecutor(at_once) as many:

        def ask(number: int) -> int:
            body = {
                "model": "served",
                "prompt": f"{PROMPT} {number}",
                "max_tokens": tokens,
                "temperature": 0,
                "stop": NEVER,
            }
            answer = client.post(f"{address}/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        began = time.perf_counter()
        done = sum(many.map(ask, range(requests)))
        return done / (time.perf_counter() - began)


def random_model(folder: Path) -> str:
    """Write the preset 10m with random weights over a small vocabulary."""
    tokenizer = Tokenizer.train([PROMPT] * 3, 300)
    save_bundle(Decoder(Architecture(preset="10m").config(8192)).eval(), tokenizer, folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    rounds, tokens = (1, 8) if given.quick else (given.rounds, given.tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or random_model(Path(folder) / "model")
        with served(model, given.clients) as address:
            tokens_per_second(address, given.clients, given.clients, min(tokens, 8))  # warm
            pairs = []
            for turn in range(rounds):
                order = (1, given.clients) if turn % 2 == 0 else (given.clients, 1)
                found = {n: tokens_per_second(address, given.clients, n, tokens) for n in order}
                pairs.append((found[1], found[given.clients]))
    ratios = [together / alone for alone, together in pairs]
    figures = {
        "model": given.model or "preset 10m, random weights", "clients": given.clients, "tokens": tokens,
        "rounds": rounds,
        "one_after_another_tokens_per_second": statistics.median(a for a, _ in pairs),
        "at_once_tokens_per_second": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
    if given.json is not None:
        given.json.write_text(json.dumps({**figures, "stamp": stamp()}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
