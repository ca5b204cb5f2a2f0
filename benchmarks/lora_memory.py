"""Peak memory of one training step: full fine-tuning and half-frozen against LoRA, at a named shape.

System A's claim for GPT-2 Large was 12.8 GB against 3.3 GB with under 0.2 % trainable. Random weights, fp32, AdamW; a
process for each measurement, since a process never gives its peak back.

Usage: python benchmarks/lora_memory.py [--shape gpt2-large|base-14m] [--batch 1] [--tokens 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

SHAPES = {
    "gpt2-large": {"vocab_size": 50257, "context": 1024, "layers": 36, "width": 1280, "heads": 20},
    "base-14m": {"vocab_size": 8192, "context": 512, "layers": 6, "width": 384, "heads": 6},
}


def arms(shape: str) -> dict[str, list[dict[str, object]]]:
    """Techniques by the name of their row."""
    out: dict[str, list[dict[str, object]]] = {
        "full fine-tuning": [],
        "half-frozen": [{"kind": "freeze", "train": "half"}],
    }
    if shape == "gpt2-large":
        out["LoRA r8 on q and v"] = [{"kind": "lora", "rank": 8, "targets": ["q", "v"]}]
        out["LoRA r8 on attention and MLP"] = [{"kind": "lora", "rank": 8}]
        return out
    ranks = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    return out | {f"LoRA r{rank} on attention and MLP": [{"kind": "lora", "rank": rank}] for rank in ranks}


def measure(shape: str, arm: str, batch: int, tokens: int, checkpointing: bool) -> dict[str, float]:
    """Peak resident bytes of this process after one step; the imports' share is measured before the model exists."""
    import torch
    from pydantic import TypeAdapter

    from limbeck.data.batch import Batch
    from limbeck.model.config import DecoderConfig
    from limbeck.model.decoder import Decoder
    from limbeck.objectives.next_token import NextToken
    from limbeck.techniques.table import AnyTechnique
    from limbeck.techniques.technique import apply_all
    from limbeck.train.loop import train
    from limbeck.train.settings import TrainSettings

    class One:
        per_epoch = 1

        def at(self, index: int) -> Batch:
            return Batch.of_ids(torch.randint(SHAPES[shape]["vocab_size"], (batch, tokens)))

    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**SHAPES[shape]))
    model = apply_all(TypeAdapter(tuple[AnyTechnique, ...]).validate_python(arms(shape)[arm]), model)
    settings = TrainSettings(steps=1, precision="fp32", monitor="", checkpointing=checkpointing)
    train(model, NextToken(), One(), settings, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    share = model.count_parameters(trainable=True) / model.count_parameters()
    return {
        "parameters": model.count_parameters(),
        "trainable_share": share,
        "peak_bytes": peak,
        "import_bytes": imports,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-large")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm is not None:
        print(json.dumps(measure(given.shape, given.arm, given.batch, given.tokens, given.checkpointing)))
        return
    results = {}
    size = f"{given.batch} x {given.tokens} tokens"
    print(f"shape of {given.shape}, random weights, fp32, AdamW, {size}, one step, peak of the process", flush=True)
    print(f"{'arm':32} {'trainable':>12} {'share':>9} {'peak GB':>9} {'of full':>8}")
    for arm in arms(given.shape):
        command = [sys.executable, __file__, "--arm", arm, "--shape", given.shape]
        command += ["--batch", str(given.batch), "--tokens", str(given.tokens)]
        done = subprocess.run(
            command + ["--checkpointing"] * given.checkpointing, capture_output=True, text=True, check=True
        )
        r = results[arm] = json.loads(done.stdout.splitlines()[-1])
        full = results["full fine-tuning"]["peak_bytes"]
        trainable = r["trainable_share"] * r["parameters"]
        print(
            f"{arm:32} {trainable:12,.0f} {r['trainable_share']:9.3%} {r['peak_bytes'] / 1e9:9.2f}"
            f" {r['peak_bytes'] / full:8.2f}",
            flush=True,
        )
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
