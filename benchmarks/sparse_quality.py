"""What sparse attention costs a pretrained model: before and after recovery, and far past its training length.

Usage: python benchmarks/sparse_quality.py recovery MODEL TRAIN TEST [--tokens N] [--json FILE]
       python benchmarks/sparse_quality.py streaming MODEL TEXT [--length N] [--window W] [--json FILE]
       python benchmarks/sparse_quality.py [recovery|streaming] --quick

TRAIN, TEST and TEXT are plain text; MODEL is a folder. ``recovery`` makes every arm of the same tokens in the same
order: dense, LogSparse by fine-tuning and by distillation from the dense model, hybrids with as many dense layers
chosen by sensitivity and by every n-th. ``streaming`` scores the same tokens by position: dense past the training
length, a window alone, with sinks at their true distance and at the cache's, and on sampled positions the window
computed again. ``--quick`` tries the benchmark itself on random weights and this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness.stamp import stamp
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.session import evaluating
from limbeck.errors import DataError
from limbeck.formats.load import load_bundle
from limbeck.measure.by_position import nats_by_position, position_ranges, recomputed_nats
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.pattern_cost import total_keys_per_query
from limbeck.model.patterns import LogSparse, Sliding
from limbeck.techniques.sparse_attention import SparseAttention, layer_sensitivity, with_patterns

Encode = Callable[[str], Sequence[int]]
PATTERN = LogSparse(window=32, sinks=4)


def base_of(given: argparse.Namespace) -> tuple[Decoder, Encode]:
    """The model to start from, anew, and its encoder."""
    if not given.quick:
        bundle = load_bundle(given.model, torch.float32)
        return bundle.model, bundle.tokenizer.encode
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=256, context=64, layers=3, hidden_size=32, heads=2, positions="rope")
    return Decoder(config), lambda text: list(text.encode())


def windows(encode: Encode, file: Path, size: int, count: int) -> Tensor:
    """(count, size) ids of the beginning of a text."""
    ids = encode(file.read_text(encoding="utf-8")[: count * size * 8])
    if len(ids) < count * size:
        raise SystemExit(f"{file.name} has {len(ids)} tokens, but {count * size} are wanted: give a longer text")
    return torch.tensor(ids[: count * size]).view(count, size)


def nats(model: Decoder, ids: Tensor) -> np.ndarray[Any, Any]:
    """(N,) mean nats per predicted token of each window."""
    with evaluating(model):
        rows = [model(Batch.of_ids(row[None])).float()[0, :-1] for row in ids]
        return np.array([float(F.cross_entropy(x, row[1:])) for x, row in zip(rows, ids, strict=True)])


def learn(model: Decoder, ids: Tensor, teacher: Decoder | None, rate: float) -> None:
    """One pass over the windows in steps of two, by likelihood or by the divergence to the teacher's predictions."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps = ids.split(2)
    model.train()
    for i, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (i + 1) / 4) * (0.1 + 0.9 * (1 - i / len(steps)))
        logits = model(Batch.of_ids(rows))[:, :-1]
        if teacher is None:
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        else:
            with torch.no_grad():
                aim = teacher(Batch.of_ids(rows))[:, :-1].log_softmax(-1)
            loss = F.kl_div(logits.log_softmax(-1), aim, log_target=True, reduction="none").sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def recovery(given: argparse.Namespace) -> dict[str, Any]:
    base, encode = base_of(given)
    size = base.config.context
    train = windows(encode, given.text[0], size, given.tokens // size)
    test = windows(encode, given.text[1], size, given.windows)
    layers, kept = base.config.layers, max(1, base.config.layers // 3)
    harm = layer_sensitivity(base, PATTERN, [Batch.of_ids(train[:4])])
    chosen = tuple(sorted(sorted(range(layers), key=lambda i: -harm[i])[:kept]))
    print("nats per token that each layer's sparsity adds:", [round(x, 4) for x in harm])
    arms: dict[str, tuple[SparseAttention | None, bool]] = {
        "dense": (None, False),
        "LogSparse": (SparseAttention(pattern=PATTERN), False),
        f"hybrid, sensitive {chosen} dense": (SparseAttention(pattern=PATTERN, keep_layers=chosen), False),
        f"hybrid, every {layers // kept}th dense": (SparseAttention(pattern=PATTERN, keep_every=layers // kept), False),
        "LogSparse, distilled": (SparseAttention(pattern=PATTERN), True),
    }
    reference = nats(base, test)
    found: dict[str, Any] = {}
    for name, (technique, distilled) in arms.items():
        model = copy.deepcopy(base)
        if technique is not None:
            model = technique.apply(model)
        before = nats(model, test)
        keys = total_keys_per_query(model.config, size)
        learn(model, train, base if distilled else None, given.rate)
        after = nats(model, test)
        if name == "dense":
            reference_after = after
        found[name] = {
            "keys_per_query": keys,
            "before": float(before.mean()), "before_minus_dense": paired(before, reference),
            "after": float(after.mean()), "after_minus_dense": paired(after, reference_after),
        }  # fmt: skip
        print(name, json.dumps(found[name]), flush=True)
    return {"tokens": int(train.numel()), "test_tokens": int(test.numel()), "sensitivity": harm, "arms": found}


def paired(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> list[float]:
    """Mean difference over windows, and its standard error."""
    d = a - b
    return [float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))]


def streaming(given: argparse.Namespace) -> dict[str, Any]:
    model, encode = base_of(given)
    context = model.config.context
    texts = windows(encode, given.text[0], given.length, given.texts).tolist()
    ranges = position_ranges(context, given.length)
    sinks, window = 4, given.window
    arms: dict[str, Sliding | None] = {
        "dense": None,
        "window alone": Sliding(window=window + sinks),
        "sinks at true distance": Sliding(window=window, sinks=sinks),
        "sinks at the cache's distance": Sliding(window=window, sinks=sinks, sink_distance="cache"),
    }
    found: dict[str, Any] = {}
    for name, pattern in arms.items():
        if pattern is not None:
            with_patterns(model, [pattern] * model.config.layers)
        scores = attempt(lambda: nats_by_position(model, texts, ranges))
        found[name] = None if scores is None else {r.statistic.name: r.statistic.value(scores) for r in ranges}
        print(name, json.dumps(found[name]), flush=True)
    generator = torch.Generator().manual_seed(0)
    sampled = torch.randint(context, given.length, (given.samples,), generator=generator).tolist()
    stream, _ = base_of(given)
    again = np.array(recomputed_nats(stream, texts[0], sampled, window + sinks))
    same = token_nats(model, texts[0])[[p - 1 for p in sampled]]
    found["same tokens"] = {
        "positions": len(sampled), "computed again": float(again.mean()), "streamed": float(same.mean()),
        "streamed minus computed again": paired(same, again),
    }  # fmt: skip
    print(json.dumps(found["same tokens"]))
    return {"length": given.length, "texts": given.texts, "window": window, "sinks": sinks, "arms": found}


def token_nats(model: Decoder, text: Sequence[int]) -> np.ndarray[Any, Any]:
    """Nats of each token but the first, from one forward."""
    with evaluating(model):
        logits = model(Batch.of_ids(torch.tensor([list(text)])))[0, :-1].float()
        return F.cross_entropy(logits, torch.tensor(list(text[1:])), reduction="none").numpy()


def attempt(run: Callable[[], Any]) -> Any:
    """The result, or None where the model cannot read so long a text."""
    try:
        return run()
    except DataError as error:
        print(error)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("recovery", "streaming"), default="recovery")
    parser.add_argument("model", nargs="?")
    parser.add_argument("text", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=16384, help="recovery: tokens that every arm learns from")
    parser.add_argument("--windows", type=int, default=24, help="recovery: windows of the test text")
    parser.add_argument("--rate", type=float, default=2e-4, help="recovery: learning rate")
    parser.add_argument("--length", type=int, default=8192, help="streaming: tokens of a text")
    parser.add_argument("--texts", type=int, default=2, help="streaming: how many texts")
    parser.add_argument("--window", type=int, default=508, help="streaming: window beside four sinks")
    parser.add_argument("--samples", type=int, default=100, help="streaming: positions computed again")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="few tokens: tries the benchmark itself")
    given = parser.parse_args()
    if given.quick:
        given.text, given.tokens, given.windows = [Path(__file__)] * 2, 256, 4
        given.length, given.texts, given.window, given.samples = 256, 2, 40, 8
    elif len(given.text) != (2 if given.what == "recovery" else 1):
        parser.error("give a model, and a text to learn from and one to test on, or for streaming one text")
    found = recovery(given) if given.what == "recovery" else streaming(given)
    if given.json is not None:
        told = {"stamp": stamp(), **found}
        if not given.quick:  # the folders of this machine are no part of how the figures were made
            told["stamp"]["command"] = f"python benchmarks/sparse_quality.py {given.what} MODEL TEXT"
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
