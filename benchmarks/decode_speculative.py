"""Speculative decoding of a trained model with its student as draft: what it gains, beside what its parts predict.

Usage: python benchmarks/decode_speculative.py [MODEL DRAFT] [--rounds 7] [--proposals 4] [--dtype fp32|bf16]
[--temperature 0] [--quick] [--json FILE]

Plain and speculative generation take turns on the same prompts. The prediction is made of the share of proposals that
was kept and of three costs, each measured by itself: a step of the model, its forward over all proposals, a step of the
draft. Without models the preset 10m on random weights drafts with its own first half, which tries the benchmark alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.stamp import stamp

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.session import Session, evaluating
from limbeck.decode.settings import Decoding
from limbeck.decode.speculative import speculate
from limbeck.formats.load import load_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.techniques.depth import Depth

PROMPTS = ("The history of the", "In the morning she", "A small town", "After the war")
NEW = 96


def costs(model: Decoder, draft: Decoder, proposals: int) -> dict[str, float]:
    """Median seconds of a model's step, of its check of all proposals, and of a draft's step, half way through."""

    def timed(one: Decoder, many: int) -> float:
        with evaluating(one):
            session = Session(one, [[1] * (NEW // 2)], NEW)
            session.start()
            held, taken = session.lengths, []
            for _ in range(20):
                began = time.perf_counter()
                logits = session.extend([[3] * many])
                logits[0, -1].argmax().item()
                taken.append(time.perf_counter() - began)
                session.rewind(held)
        return statistics.median(taken)

    return {"step": timed(model, 1), "check": timed(model, proposals + 1), "draft": timed(draft, 1)}


def loaded(model: str, draft: str, dtype: torch.dtype) -> tuple[Decoder, Decoder, Tokenizer]:
    """A model, its draft, and their tokenizer."""
    bundle = load_bundle(model, dtype)
    return bundle.model, load_bundle(draft, dtype).model, bundle.tokenizer


def made(dtype: torch.dtype) -> tuple[Decoder, Decoder, Tokenizer]:
    """The preset 10m on random weights, and its first half."""
    tokenizer = Tokenizer.train(PROMPTS, 300)
    model = Decoder(Architecture(preset="10m").config(tokenizer.vocab_size)).to(dtype).eval()
    draft = Depth(layers=(0, 1, 2, 3)).apply(copy.deepcopy(model))
    return model, draft, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL DRAFT")
    parser.add_argument("--quick", action="store_true", help="one round: tries the benchmark itself")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--proposals", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    dtype = torch.float32 if given.dtype == "fp32" else torch.bfloat16
    if len(given.models) not in (0, 2):
        parser.error("give a model and its draft, or neither")
    model, draft, tokenizer = loaded(*given.models, dtype) if given.models else made(dtype)
    prompts = [tokenizer.encode(p) for p in PROMPTS]
    how = Decoding(max_new_tokens=NEW, temperature=given.temperature)

    def rate(work: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        out = work()
        return NEW * len(prompts) / (time.perf_counter() - began), out

    rounds = []
    for _ in range(2 if given.quick else given.rounds + 1):
        plain, _ = rate(lambda: generate(model, tokenizer, prompts, how, batch_size=1, end_ids=()))
        fast, (_, worth) = rate(
            lambda: speculate(model, draft, tokenizer, prompts, how, proposals=given.proposals, end_ids=())
        )
        c = costs(model, draft, given.proposals)
        a_round = worth.tokens / worth.rounds
        predicted = a_round * c["step"] / (c["check"] + given.proposals * c["draft"])
        rounds.append(
            {"plain": plain, "speculative": fast, "acceptance": worth.acceptance, "tokens_a_round": a_round,
             "speedup": fast / plain, "predicted": predicted, "share": fast / plain / predicted, **c}
        )  # fmt: skip
    rounds = rounds[1:]  # the first warms up
    told = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    spread = [r["share"] for r in rounds]
    print(
        f"{given.dtype}, {given.proposals} proposals, temperature {given.temperature:g}, {len(rounds)} rounds, medians"
    )
    print(f"tokens/s: {told['plain']:.0f} alone, {told['speculative']:.0f} with the draft")
    print(f"kept: {told['acceptance']:.1%} of the proposals, {told['tokens_a_round']:.2f} tokens a round")
    print(f"ms: step {told['step'] * 1e3:.2f}, check {told['check'] * 1e3:.2f}, draft's step {told['draft'] * 1e3:.2f}")
    print(
        f"speed-up {told['speedup']:.2f}, predicted {told['predicted']:.2f}: {told['share']:.2f} of it "
        f"({min(spread):.2f} to {max(spread):.2f}; bar: at least 0.8)"
    )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "medians": told, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
