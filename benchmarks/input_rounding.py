"""What rounding inputs for products in eight-bit integers costs a trained model: paired, token by token.

Usage: python benchmarks/input_rounding.py MODEL TEXT [--tokens 32768] [--window 512] [--dtype fp32|bf16] [--json FILE]

The model is rounded to each format; its loss on the first tokens of TEXT, in windows, is taken by the reference and by
every other path of `limbeck.kernels.packed`. Told are the mean of the differences in nats a token, and its standard
error. Without a model, the preset 10m on random weights and bytes tries the benchmark alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from harness.stamp import stamp
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.formats.load import load_bundle
from limbeck.kernels.packed import Dispatch, dispatch
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN

GRIDS = {
    "int8 per channel": Grid(format="int8"),
    "int4 group 32": Grid(format="int4", granularity="group", group_size=32),
    "q8_0": Grid(format="q8_0"),
    "q4_0": Grid(format="q4_0"),
}


def losses(model: Decoder, ids: Tensor) -> Tensor:
    """(tokens,) nats of every predicted token of the windows ``ids`` (N, T), fp64."""
    parts = []
    with torch.inference_mode():
        for rows in torch.split(ids, 2):
            logits = model(Batch.of_ids(rows)).float()
            parts.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none"))
    return torch.cat(parts).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="MODEL TEXT")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--quick", action="store_true", help="few tokens: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if len(given.given) not in (0, 2):
        parser.error("give a model and a text, or neither")
    warnings.filterwarnings("ignore", module="limbeck")
    tokens, window = (256, 64) if given.quick else (given.tokens, given.window)
    if given.given:
        bundle = load_bundle(given.given[0])
        model, text = bundle.model, Path(given.given[1]).read_text(encoding="utf-8")
        ids = torch.tensor(bundle.tokenizer.encode(text[: 8 * tokens])[:tokens])
    else:
        torch.manual_seed(0)
        model, ids = Decoder(Architecture(preset="10m").config(512)).eval(), torch.randint(512, (tokens,))
    ids = ids[: len(ids) // window * window].view(-1, window)
    dtype = torch.float32 if given.dtype == "fp32" else torch.bfloat16
    paths: tuple[Dispatch, ...] = ("integer", "dequantize", "packed")
    assert set(paths) < set(get_args(Dispatch))
    out = []
    print(f"{ids.shape[0] * (window - 1):,} predicted tokens in windows of {window}, {given.dtype}, nats a token")
    for name, grid in GRIDS.items():
        rounded = RTN(grid=grid).apply(copy.deepcopy(model)).to(dtype).eval()
        with dispatch("reference"):
            plain = losses(rounded, ids)
        told = [f"{name}: reference {plain.mean():.5f}"]
        row: dict[str, object] = {"grid": name, "reference": float(plain.mean())}
        for path in paths:
            with dispatch(path):
                more = losses(rounded, ids) - plain
            row[path] = {"mean": float(more.mean()), "standard_error": float(more.std() / len(more) ** 0.5)}
            told.append(f"{path} {more.mean():+.5f} ({more.std() / len(more) ** 0.5:.5f})")
        out.append(row)
        print(", ".join(told), flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "tokens": ids.numel(), "grids": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
