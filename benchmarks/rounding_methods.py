"""What rounding to four bits costs a trained model by method: KL to the original, paired window by window.

Usage: python benchmarks/rounding_methods.py MODEL TEXT [--calibration TEXT] [--windows 8] [--window 256]
    [--arms "rtn;rotate, rtn"] [--rescale] [--json FILE]

Linear layers alone are rounded; embedding and head stay, so that every arm rounds the same weights. Windows are taken
evenly from the text. Told are the mean KL in nats a token, its interval over windows, and the paired difference to the
first arm. With --rescale the original is first multiplied through by seeded factors that cancel (gains of norms, values
and their projection, up and down): an equal function whose weights do not lie on the grid that they were published on.
Without a model, the preset 10m on random weights and bytes tries the benchmark alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from pathlib import Path

import torch
from harness.stamp import stamp

from limbeck.data.batch import Batch, Example
from limbeck.formats.load import load_bundle
from limbeck.kernels.packed import dispatch
from limbeck.measure.agreement import KL_PER_TOKEN, agreement
from limbeck.measure.stats import compare, interval
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.techniques.awq import AWQ
from limbeck.techniques.folding import blocks, readers
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid
from limbeck.techniques.hqq import HQQ
from limbeck.techniques.rotate import Rotate
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import Technique, apply_all

LINEAR = {"embeddings": False, "head": False}
ARMS: dict[str, tuple[Technique, ...]] = {
    "rtn": (RTN(bits=4, **LINEAR),),
    "rtn clipped": (RTN(bits=4, clip="search", **LINEAR),),
    "rotate, rtn": (Rotate(untie=True), RTN(bits=4, **LINEAR)),
    "rotate, rtn clipped": (Rotate(untie=True), RTN(bits=4, clip="search", **LINEAR)),
    "awq": (AWQ(bits=4, steps=10, **LINEAR),),
    "awq clipped": (AWQ(bits=4, steps=10, clip="search", **LINEAR),),
    "rtn with offsets": (RTN(grid=Grid(format="int4", symmetric=False), **LINEAR),),
    "hqq": (HQQ(bits=4, **LINEAR),),
    "nf4": (RTN(grid=Grid(format="nf4"), **LINEAR),),
    "int3": (RTN(bits=3, **LINEAR),),
    "int5": (RTN(bits=5, **LINEAR),),
    "int6": (RTN(bits=6, **LINEAR),),
    "gptq": (GPTQ(bits=4, **LINEAR),),
    "rotate, gptq": (Rotate(untie=True), GPTQ(bits=4, **LINEAR)),
}


def windows(ids: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """(count, width) taken evenly from ``ids``."""
    starts = torch.linspace(0, len(ids) - width, count).long()
    return torch.stack([ids[s : s + width] for s in starts])


@torch.no_grad()
def rescale(model: Decoder, seed: int = 0) -> None:
    """Multiply the model through by factors of 0.5 to 2 that cancel."""
    generator = torch.Generator().manual_seed(seed)

    def factors(n: int) -> torch.Tensor:
        return 4 ** (torch.rand(n, generator=generator) - 0.5)

    for reader in readers(model)[:-1]:  # a tied head takes none
        s = factors(len(reader.norm.weight))
        reader.norm.weight *= s
        if getattr(reader.norm, "bias", None) is not None:
            reader.norm.bias *= s
        reader.layer.weight /= s
    c = model.config
    for block in blocks(model):
        s = factors(c.kv_heads * c.head_dim)
        rows = block.attention.qkv.rows("v")
        block.attention.qkv.weight[rows] *= s[:, None]
        if block.attention.qkv.bias is not None:
            block.attention.qkv.bias[rows] *= s
        wide = s.view(c.kv_heads, 1, c.head_dim).expand(-1, c.heads // c.kv_heads, -1).flatten()
        block.attention.out.weight /= wide
        if c.gated:
            s = factors(c.ffn_width)
            block.ffn.up.weight[block.ffn.up.rows("up")] *= s[:, None]
            block.ffn.down.weight /= s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="MODEL TEXT")
    parser.add_argument("--calibration", type=Path, help="another text, for methods that look at one")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--calibration-windows", type=int, default=16)
    parser.add_argument("--arms", help=f"among {', '.join(ARMS)}, separated by ;")
    parser.add_argument("--rescale", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few tokens: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if len(given.given) not in (0, 2):
        parser.error("give a model and a text, or neither")
    warnings.filterwarnings("ignore", module="limbeck")
    torch.manual_seed(0)
    if given.given:
        bundle = load_bundle(given.given[0])
        model = bundle.model
        text = Path(given.given[1]).read_text(encoding="utf-8")
        ids = torch.tensor(bundle.tokenizer.encode(text[:800_000]))
        seen = ids if given.calibration is None else torch.tensor(
            bundle.tokenizer.encode(given.calibration.read_text(encoding="utf-8")[:800_000])
        )  # fmt: skip
    else:
        model = Decoder(Architecture(preset="10m").config(512)).eval()
        ids = seen = torch.randint(512, (20_000,))
    width, count = (64, 4) if given.quick else (given.window, given.windows)
    rows = windows(ids, count, width)
    looked_at = [Batch.of_ids(r) for r in windows(seen, given.calibration_windows, width).split(4)]
    if given.rescale:
        rescale(model)
    ones = torch.ones(width, dtype=torch.bool).numpy()
    examples = [Example(i, f"window {i}", row.int().numpy(), ones) for i, row in enumerate(rows)]
    out, first = [], None
    print(f"{count} windows of {width} tokens; KL in nats a token")
    arms = (
        [a.strip() for a in given.arms.split(";")]
        if given.arms
        else (["rtn", "rotate, rtn"] if given.quick else list(ARMS))
    )
    for name in arms:
        made = apply_all(ARMS[name], copy.deepcopy(model), looked_at).eval()
        with dispatch("reference"):
            scores = agreement(model, made, examples, 4)
        first = first or scores
        kl, paired = interval(scores, KL_PER_TOKEN), compare(first, scores, KL_PER_TOKEN)
        size = made.count_bytes()
        differs = [paired.difference, paired.low, paired.high]
        out.append({"arm": name, "kl": [kl.value, kl.low, kl.high], "difference": differs, "bytes": size})
        print(f"{name}: {kl.value:.5f} ({kl.low:.5f} to {kl.high:.5f}); to {arms[0]} {paired.difference:+.5f} "
              f"({paired.low:+.5f} to {paired.high:+.5f}); {size:,} bytes", flush=True)  # fmt: skip
        del made
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "windows": count, "width": width, "arms": out}, indent=1))


if __name__ == "__main__":
    main()
