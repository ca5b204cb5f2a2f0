"""Speculative decoding of a trained model with its student as draft: what it gains, beside what its parts predict.

Usage: python benchmarks/decode_speculative.py [MODEL DRAFT] [--rounds 7] [--proposals 4] [--dtype fp32|bf16]
[--temperature 0] [--quick] [--json FILE]

Plain and speculative generation take turns on the same prompts. The prediction is made of the share of proposals that
was kept and of what forwards alone cost: each prompt's, a step of the model after another, and, in turn as speculation
runs them, as the weights of one push those of the other out of the caches, the model's over all proposals and a step of
the draft. Without models the preset 10m on random weights drafts with its own first half, which tries the benchmark
alone.
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
from torch import Tensor

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.decode.speculative import speculate
from limbeck.formats.load import load_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.presets import Architecture
from limbeck.techniques.depth import Depth

PROMPTS = ("The history of the", "In the morning she", "A small town", "After the war")
NEW = 96


def costs(model: Decoder, draft: Decoder, proposals: int, prompt: list[int]) -> dict[str, float]:
    """Median seconds of forwards: a prompt by either, a model's step, its check of all proposals, a draft's step."""
    taken: dict[str, list[float]] = {name: [] for name in ("start", "draft_start", "step", "check", "draft")}

    def timed(name: str, work: Callable[[], Tensor]) -> None:
        began = time.perf_counter()
        work().argmax().item()
        taken[name].append(time.perf_counter() - began)

    with evaluating(model), evaluating(draft):
        for _ in range(5):
            timed("start", lambda: DecodingSession(model, [prompt], NEW).start())
            timed("draft_start", lambda: DecodingSession(draft, [prompt], NEW).start())
        ours, its = (DecodingSession(one, [[1] * (NEW // 2)], NEW) for one in (model, draft))
        ours.start()
        its.start()
        held = ours.lengths
        for _ in range(20):
            timed("step", lambda: ours.step([3]))
            ours.rewind(held)
        for _ in range(20):
            for _ in range(proposals):
                timed("draft", lambda: its.step([3]))
            timed("check", lambda: ours.extend([[3] * (proposals + 1)]))
            its.rewind(held)
            ours.rewind(held)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


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
        c = costs(model, draft, given.proposals, prompts[0])
        a_round, each = worth.tokens / worth.rounds, worth.rounds / len(prompts)
        alone = c["start"] + (NEW - 1) * c["step"]
        predicted = alone / (c["start"] + c["draft_start"] + each * (c["check"] + given.proposals * c["draft"]))
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
    print(f"ms: prompt {told['start'] * 1e3:.2f}, the draft's {told['draft_start'] * 1e3:.2f}", end=", ")
    print(f"step {told['step'] * 1e3:.2f}, check {told['check'] * 1e3:.2f}, draft's step {told['draft'] * 1e3:.2f}")
    print(
        f"speed-up {told['speedup']:.2f}, predicted {told['predicted']:.2f}: {told['share']:.2f} of it "
        f"({min(spread):.2f} to {max(spread):.2f}; bar: at least 0.8)"
    )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"stamp": stamp(), "medians": told, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
