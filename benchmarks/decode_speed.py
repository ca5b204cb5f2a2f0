"""Decode and prefill speed of several models, timed in turn so that a drifting machine weighs on all alike.

Usage: python benchmarks/decode_speed.py [MODEL ...] [--rounds 5] [--quick] [--dtype fp32|bf16] [--json FILE]

A model is a folder, a run or a Hub id; with none, the presets 10m and 30m are timed on random weights. The ratio is to
the first model, round by round; medians are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from harness.stamp import stamp

from limbeck.formats.load import load_bundle
from limbeck.measure.cost import SpeedProtocol, speed
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture


def presets(dtype: torch.dtype) -> dict[str, Decoder]:
    """Two sizes with random weights over 8,192 tokens."""
    sizes = (Architecture(preset="10m"), Architecture(preset="30m"))
    return {size.preset: Decoder(size.config(8192)).to(dtype).eval() for size in sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--quick", action="store_true", help="one round: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    dtype = torch.float32 if given.dtype == "fp32" else torch.bfloat16
    models = {name: load_bundle(name, dtype).model for name in given.models} or presets(dtype)
    protocol = SpeedProtocol(repeats=3)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    rounds = 1 if given.quick else given.rounds
    for _ in range(rounds):
        for name, model in models.items():
            measured[name].append(speed(model, protocol))
    first = next(iter(measured.values()))
    print(f"{given.dtype}, batch 1, {torch.get_num_threads()} threads, {rounds} rounds in turn, medians")
    print(f"{'model':40} {'parameters':>12} {'decode ms/token':>16} {'prefill ms':>11} {'decode ratio':>13}")
    out = {}
    for name, turns in measured.items():
        pairs = zip(turns, first, strict=True)
        ratio = statistics.median(r["decode_ms_per_token"] / f["decode_ms_per_token"] for r, f in pairs)
        row = {
            "parameters": models[name].count_parameters(),
            "decode_ms_per_token": statistics.median(r["decode_ms_per_token"] for r in turns),
            "prefill_ms": statistics.median(r["prefill_ms"] for r in turns),
            "ratio": ratio,
        }
        out[name] = row
        shown = "/".join(Path(name).parts[-2:])
        print(
            f"{shown:40} {row['parameters']:12,} {row['decode_ms_per_token']:16.2f} {row['prefill_ms']:11.2f}"
            f" {ratio:13.2f}"
        )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "models": out}, indent=2) + "\n")


if __name__ == "__main__":
    main()
