"""Products with quantized weights by every path there is here, beside the bf16 product of the same shape.

Usage: python benchmarks/products.py [--rounds 9] [--rows 16 64 1000] [--quick] [--json FILE]

The four linear layers of a block of GPT-2 small, random weights and inputs in bf16; paths take turns within a round,
each with its weights as they are stored. A ratio is to the bf16 product of the same round; medians are told, and the
rate of multiplications and additions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from harness.stamp import stamp
from torch import Tensor

from limbeck.kernels.packed import Dispatch, Prepared, dispatch, linear
from limbeck.techniques.grid import Grid, encode

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # columns, rows: attention's and the MLP's
TOY = ((96, 64), (64, 160))
GRIDS = {
    "int8": Grid(format="int8"),
    "int4 group 32": Grid(format="int4", granularity="group", group_size=32),
    "q8_0": Grid(format="q8_0"),
    "q4_0": Grid(format="q4_0"),
}
PATHS: tuple[Dispatch, ...] = tuple(p for p in get_args(Dispatch) if p not in ("auto", "reference"))


def arms(shapes: tuple[tuple[int, int], ...]) -> dict[str, Callable[[list[Tensor]], object]]:
    """What is timed, by name: each takes one input a shape."""
    torch.manual_seed(0)
    weights = [torch.randn(rows, columns) / columns**0.5 for columns, rows in shapes]
    half = [w.bfloat16() for w in weights]
    out: dict[str, Callable[[list[Tensor]], object]] = {
        "bf16": lambda inputs: [F.linear(x, w) for x, w in zip(inputs, half, strict=True)]
    }
    for name, grid in GRIDS.items():
        prepared = [Prepared(encode(w, grid)) for w in weights]
        for path in PATHS:
            if path == "packed" and not prepared[0].supports_packed():
                continue
            if path == "integer" and not prepared[0].supports_integer():
                continue

            def work(inputs: list[Tensor], path: Dispatch = path, prepared: list[Prepared] = prepared) -> object:
                with dispatch(path):
                    return [linear(x, w) for x, w in zip(inputs, prepared, strict=True)]

            out[f"{name}, {path}"] = work
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 1000])
    parser.add_argument("--quick", action="store_true", help="toy shapes, one round: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="limbeck")
    shapes, rounds = (TOY, 1) if given.quick else (SHAPES, given.rounds)
    kinds, out = arms(shapes), []
    print(f"{'rows':>6} {'weights, path':28} {'ms':>9} {'best':>9} {'TFLOP/s':>8} {'over bf16 (min to max)':>24}")
    with torch.inference_mode():
        for rows in given.rows:
            inputs = [torch.randn(rows, columns).bfloat16() for columns, _ in shapes]
            taken: dict[str, list[float]] = {name: [] for name in kinds}
            for turn in range(rounds + 1):
                for name, work in kinds.items():
                    began = time.perf_counter()
                    work(inputs)
                    if turn:  # the first packs and warms up
                        taken[name].append(time.perf_counter() - began)
            work_done = 2 * rows * sum(columns * r for columns, r in shapes)
            for name, seconds in taken.items():
                ratios = [b / s for b, s in zip(taken["bf16"], seconds, strict=True)]
                row = {
                    "rows": rows, "arm": name, "ms": 1e3 * statistics.median(seconds), "best_ms": 1e3 * min(seconds),
                    "tflops": work_done / statistics.median(seconds) / 1e12, "ratio": statistics.median(ratios),
                    "ratios": ratios,
                }  # fmt: skip
                out.append(row)
                print(
                    f"{rows:6} {name:28} {row['ms']:9.3f} {row['best_ms']:9.3f} {row['tflops']:8.3f}"
                    f" {row['ratio']:10.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "products": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
