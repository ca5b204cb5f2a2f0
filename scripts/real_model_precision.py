"""Quantized arms of a real model on WikiText-2 windows: NLL, KL, top-token agreement and flips, a line an arm.

python scripts/real_model_precision.py MODEL.gguf wiki.test.raw --windows 4 --length 512
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.formats.load import load_bundle
from limbeck.kernels.packed import dispatch
from limbeck.measure.equivalence import flips
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN

ARMS = {
    "bf16": {"format": "bf16"},
    "fp8_e4m3 by channel": {"format": "fp8_e4m3", "granularity": "channel"},
    "int8 by channel": {"format": "int8"},
    "q8_0": {"format": "q8_0"},
    "q4_1": {"format": "q4_1"},
    "q4_0": {"format": "q4_0"},
    "int4 in groups of 32": {"format": "int4"},
    "int4 in groups of 128": {"format": "int4", "granularity": "group", "group_size": 128},
    "int4 by channel": {"format": "int4", "granularity": "channel"},
    "int4 by tensor": {"format": "int4", "granularity": "tensor"},
}


@torch.no_grad()
def outputs(model: Decoder, windows: Tensor) -> Tensor:
    """(W, T, V) logits, a window at a time."""
    with dispatch("reference"):
        return torch.cat([model(Batch.of_ids(row[None])) for row in windows])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of a few windows, by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    return float(values.mean()) - half, float(values.mean()) + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    asked = parser.parse_args()
    bundle = load_bundle(asked.model)
    ids = bundle.tokenizer.encode(Path(asked.text).read_text(encoding="utf-8"))
    windows = torch.tensor(ids[: asked.windows * asked.length]).view(asked.windows, asked.length)
    right = windows[:, 1:]
    before = outputs(bundle.model, windows)[:, :-1]
    base = torch.nn.functional.cross_entropy(before.flatten(0, 1), right.flatten(), reduction="none").view(right.shape)
    print(
        f"{'as the file says':24} {bundle.model.count_bytes() / 1e6:8.2f} MB  {float(base.mean()):.4f} nats", flush=True
    )
    log_before = before.log_softmax(-1)
    for name in asked.arms:
        started = time.perf_counter()
        plan = RTN(grid=Grid.model_validate(ARMS[name]))
        model = plan.apply(copy.deepcopy(bundle.model))
        after = outputs(model, windows)[:, :-1]
        log_after = after.log_softmax(-1)
        rise = (-log_after.gather(-1, right[..., None])[..., 0] - base).mean(dim=1).numpy()
        kl = (log_before.exp() * (log_before - log_after)).sum(-1).mean(dim=1).numpy()
        low, high = interval(rise)
        f = flips(before, after, right)
        print(
            f"{name:24} {model.count_bytes() / 1e6:8.2f} MB  {float(base.mean()) + rise.mean():.4f} nats  "
            f"rise {rise.mean():+.4f} [{low:+.4f}, {high:+.4f}]  KL {kl.mean():.4f}  "
            f"top {1 - f.changed / f.items:.3f}  right to wrong {f.right_to_wrong}, wrong to right {f.wrong_to_right} "
            f"of {f.items}  ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
