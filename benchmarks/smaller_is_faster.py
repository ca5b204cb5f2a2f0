"""Quantized models against the same model in fp32: decoding, prompts and memory in use, saved and loaded as verbs do.

Usage: python benchmarks/smaller_is_faster.py [--formats fp32,int8,int4] [--rounds 9] [--prompt 512] [--tokens 24]
    [--clock wall|cpu] [--quick] [--json FILE]

GPT-2 small's shape with random weights is written to a temporary folder in each format and loaded again, computed in
fp32 but for its weights. Arms take turns within a round, in one process; a ratio is to fp32 in the same round, and
medians are told. Memory is what loading and using a model takes above a fresh process (``measure.footprint``).
LIMBECK_ARCH chooses the instructions of both sides' kernels (``x86-64-v3``: AVX2). ``--clock cpu`` counts processor
time of one thread instead: where other work shares the cores it is what can be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness.stamp import stamp

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.formats.load import load_bundle
from limbeck.formats.native import write_model
from limbeck.kernels import native
from limbeck.measure.cost import SpeedProtocol
from limbeck.measure.footprint import footprint
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN

FORMATS = ("fp32", "bf16", "fp16", "int8", "q8_0", "int4", "q4_0")
DECODE_BARS = {"int8": 2.5, "int4": 4.0}
MEMORY_BARS = {"int8": 0.35, "int4": 0.25}


def folders(config: DecoderConfig, root: Path, formats: list[str]) -> dict[str, Path]:
    """One saved model a format, from the same weights."""
    out, tokenizer = {}, Tokenizer.train(["a few words"], 300)
    for name in formats:
        torch.manual_seed(0)
        model = Decoder(config).eval()
        out[name] = root / name
        out[name].mkdir()
        tokenizer.save(out[name])
        if name == "fp32":
            write_model(model, out[name], {})
            continue
        technique = RTN(grid=Grid(format=name))  # type: ignore[arg-type]
        model, deployed_spec = technique.convert(technique.apply(model))
        write_model(model, out[name], {}, (deployed_spec,) if deployed_spec else ())
    return out


def rates(model: Decoder, prompt: int, tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Tokens a second of a prompt, and of greedy decoding after it."""
    ids = torch.randint(0, model.config.vocab_size, (prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    with evaluating(model):
        session = DecodingSession(model, [ids], tokens + 1)
        start = clock()
        logits = session.start()
        read = clock()
        logits = session.step(logits.argmax(dim=-1).tolist())  # describes the model to the compiled step
        begun = clock()
        for _ in range(tokens):
            logits = session.step(logits.argmax(dim=-1).tolist())
        return prompt / (read - start), tokens / (clock() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS), help="fp32 first: the others are compared with it")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="a toy model and one round: tries the benchmark itself")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    config = DecoderConfig(vocab_size=50257, context=1024, layers=12, hidden_size=768, heads=12)
    rounds, prompt = given.rounds, given.prompt
    if given.quick:
        config, rounds, prompt = DecoderConfig(vocab_size=320, context=128, layers=2, hidden_size=64, heads=2), 1, 16
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    if given.clock == "cpu":
        torch.set_num_threads(1)
    native.load()  # the first compile is no part of a rate
    out = {}
    with TemporaryDirectory() as folder:
        saved = folders(config, Path(folder), given.formats.split(","))
        protocol = SpeedProtocol(repeats=1, warm_up=0, prompt_tokens=min(64, prompt), new_tokens=8)
        memory = {name: footprint(path, protocol=protocol).use_bytes for name, path in saved.items()}
        models = {name: load_bundle(str(path)).model for name, path in saved.items()}
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
        for model in models.values():
            rates(model, prompt, 1, clock)
        for _ in range(rounds):
            for name, model in models.items():
                turns[name].append(rates(model, prompt, given.tokens, clock))
    threads = torch.get_num_threads()
    print(f"{rounds} rounds in turn, {given.clock} time, {threads} threads, prompt {prompt}; medians, ratios to fp32")
    print(f"{'format':8}{'decode tok/s':>14}{'ratio':>8}{'prompt tok/s':>14}{'ratio':>8}{'in use MB':>11}{'ratio':>8}")
    for name in models:
        ratios = [[t[i] / f[i] for t, f in zip(turns[name], turns["fp32"], strict=True)] for i in (1, 0)]
        row = {
            "decode_tokens_per_s": statistics.median(t[1] for t in turns[name]),
            "decode_ratio": statistics.median(ratios[0]),
            "prompt_tokens_per_s": statistics.median(t[0] for t in turns[name]),
            "prompt_ratio": statistics.median(ratios[1]),
            "use_bytes": memory[name],
            "memory_ratio": memory[name] / max(memory["fp32"], 1),
        }
        out[name] = row
        print(
            f"{name:8}{row['decode_tokens_per_s']:14.1f}{row['decode_ratio']:8.2f}{row['prompt_tokens_per_s']:14.1f}"
            f"{row['prompt_ratio']:8.2f}{row['use_bytes'] / 1e6:11.0f}{row['memory_ratio']:8.2f}"
        )
    for title, bars, key in (("decode", DECODE_BARS, "decode_ratio"), ("memory", MEMORY_BARS, "memory_ratio")):
        for name, bar in bars.items():
            if name not in out:
                continue
            print(f"{title} {name}: {out[name][key]:.2f}, bar {bar}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "formats": out}, indent=2) + "\n")


if __name__ == "__main__":
    main()
