"""Time and memory of one layer's attention against the length: sparse, torch's dense kernel, and a mask of all pairs.

Usage: python benchmarks/sparse_attention.py [--quick] [--lengths 1024,4096,...] [--patterns NAMES] [--json FILE]

Forward and backward of 12 heads of 64 in fp32, each case in a process of its own. Told are seconds of processor time
(on one thread that is the time of an idle machine), memory above the inputs, and the exponent of a line through the
logarithms of time and length. Above ``--whole`` tokens the dense kernel is timed on one of the 12 heads, which are
independent of each other, its time is multiplied by 12 and its memory left out; the mask of all pairs has 2 heads,
and LogSparse is measured with 2 heads too to compare their memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.stamp import stamp
from harness.worker import peak_bytes

HEADS, WIDTH = 12, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
PATTERNS: dict[str, dict[str, Any]] = {
    "LogSparse": {"kind": "log_sparse", "window": 32, "sinks": 4},
    "sliding": {"kind": "sliding", "window": 256, "sinks": 4},
}


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(arm: str, length: int, heads: int, rounds: int) -> dict[str, float]:
    """Seconds of the fastest of ``rounds`` forwards and backwards, and the peak of memory above the inputs."""
    import torch
    import torch.nn.functional as F
    from pydantic import TypeAdapter

    from limbeck.kernels.attention import Span
    from limbeck.kernels.sparse import Reach, sparse_attention
    from limbeck.model.patterns import AnyPattern

    torch.manual_seed(0)
    x = torch.randn(1, 1, 64, WIDTH, requires_grad=True)  # what the first backward loads is no part of an arm
    dense = F.scaled_dot_product_attention(x, x, x, is_causal=True) + (x @ x.mT).softmax(-1) @ x
    (dense + sparse_attention(x, x, x, [Span(0, 1, 0, 64)], Reach(0, ((0, 4),)))[0]).backward(torch.ones_like(x))
    q, k, v = (torch.randn(1, heads, length, WIDTH, requires_grad=True) for _ in range(3))
    incoming = torch.randn(1, heads, length, WIDTH)
    mask = None
    pattern: Any = TypeAdapter(AnyPattern).validate_python(PATTERNS.get(arm, {"kind": "causal"}))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is resident now
    before = resident_bytes()
    if arm == "mask of all pairs":
        place = torch.arange(length)
        mask = ~TypeAdapter(AnyPattern).validate_python(PATTERNS["LogSparse"]).allows(place[:, None], place)

    def attend() -> torch.Tensor:
        if arm == "torch dense":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if mask is not None:
            return (q @ k.mT * WIDTH**-0.5).masked_fill(mask, float("-inf")).softmax(-1) @ v
        return sparse_attention(q, k, v, [Span(0, 1, 0, length)], pattern.reach(length))[0]

    forward, backward = math.inf, math.inf
    for _ in range(rounds):
        q.grad = k.grad = v.grad = None
        begun = time.process_time()
        out = attend()
        middle = time.process_time()
        out.backward(incoming)
        forward, backward = min(forward, middle - begun), min(backward, time.process_time() - middle)
        del out
    return {"forward": forward, "backward": backward, "bytes": float(peak_bytes() - before)}


def measure(arm: str, length: int, heads: int, rounds: int) -> dict[str, float]:
    """``work`` in a process of its own."""
    command = [sys.executable, __file__, "--work", json.dumps([arm, length, heads, rounds])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """Slope of the line of least squares through the logarithms."""
    xs, ys = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--patterns", default=",".join(PATTERNS), help=f"of {', '.join(PATTERNS)}")
    parser.add_argument("--whole", type=int, default=8192, help="longest at which the dense kernel has all heads")
    parser.add_argument("--masked", type=int, default=8192, help="length at which the mask of all pairs is measured")
    parser.add_argument("--quick", action="store_true", help="short lengths: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(work(*json.loads(given.work))))
        return
    lengths = [64, 128] if given.quick else [int(n) for n in given.lengths.split(",")]
    cases: list[dict[str, Any]] = []
    for length in lengths:
        for arm in ("torch dense", *given.patterns.split(",")):
            few = arm == "torch dense" and length > given.whole
            found = measure(arm, length, 1 if few else HEADS, 1 if few else 2)
            if few:
                found = {"forward": HEADS * found["forward"], "backward": HEADS * found["backward"], "bytes": None}
            measured = 1 if few else HEADS
            cases.append({"arm": arm, "length": length, "heads": HEADS, "measured_heads": measured, **found})
        if length == given.masked or given.quick:
            for arm in ("mask of all pairs", "LogSparse"):
                found = measure(arm, length, 2, 2)
                cases.append({"arm": arm, "length": length, "heads": 2, "measured_heads": 2, **found})
        print(f"measured {length} tokens", file=sys.stderr)
    whole = [c for c in cases if c["heads"] == HEADS]
    for c in cases:
        memory = "" if c["bytes"] is None else f", {c['bytes'] / 1e6:8.1f} MB above the inputs"
        print(
            f"{c['arm']:18} {c['length']:6} tokens {c['heads']:2} heads: forward {c['forward']:8.3f} s, backward "
            f"{c['backward']:8.3f} s{memory}"
        )
    fits = {}
    for arm in ("torch dense", *given.patterns.split(",")):
        mine = [c for c in whole if c["arm"] == arm]
        fits[arm] = exponent([c["length"] for c in mine], [c["forward"] + c["backward"] for c in mine])
        print(f"{arm}: time grows with the length to the power of {fits[arm]:.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps({"stamp": stamp(), "cases": cases, "exponents": fits}, indent=1) + "\n")


if __name__ == "__main__":
    main()
