"""Plain, on-policy and sequence-level distillation on the toy questions, at equal teacher tokens; prints a table.

Usage: python scripts/on_policy_toy.py --teacher-tokens 50000 --seeds 3
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch

from limbeck.data.batches import Batches
from limbeck.data.splits import split_rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.decode.settings import Decoding
from limbeck.measure.scores import Scores
from limbeck.measure.stats import compare, interval
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.teacher import Dense, LiveTeacher
from limbeck.synth.on_policy import Mixing, OnPolicy, keep_rows
from limbeck.synth.teacher_answers import teacher_answers
from limbeck.tasks.qa import QuestionAnswering
from limbeck.tasks.task import Measuring
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings

CONTEXT, BATCH = 64, 16
ARMS = ("student before", "answers alone", "plain, forward KL", "on-policy 0.5, JSD", "on-policy, reverse KL",
        "on-policy, forward KL", "sequence level")  # fmt: skip


class Counting(LiveTeacher):
    """A teacher that counts the tokens it reads."""

    read_tokens = 0

    def signal(self, batch: Any) -> Dense:  # noqa: D102 - see the base
        self.read_tokens += int(batch.real.sum())
        return super().signal(batch)


def model_of(tokenizer: Tokenizer, layers: int, hidden_size: int) -> Decoder:
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, context=CONTEXT, layers=layers, hidden_size=hidden_size, heads=4
    )
    return Decoder(config)


def settings(steps: int, rate: float) -> TrainSettings:
    return TrainSettings(steps=steps, learning_rate=rate, precision="fp32", monitor="", warmup=0.1, log_every=10**6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher-tokens", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--student-steps", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, measuring = QuestionAnswering(), Measuring(batch_size=64)
    split = split_rows(toy_rows("qa", size=given.rows), "question", {"train": 0.8, "test": 0.2})
    tokenizer = Tokenizer.train([str(v) for row in split["train"] for v in row.fields.values()], 600)
    examples, _ = task.encode(split["train"], tokenizer, CONTEXT)
    options: dict[str, Any] = {"batch_size": BATCH, "context": CONTEXT, "pad_id": tokenizer.pad_id, "bucketing": True}
    torch.manual_seed(0)
    teacher = model_of(tokenizer, 3, 96)
    train(teacher, NextToken(), Batches(examples, **options), settings(given.teacher_steps, 2e-3), progress=False)
    tokens_a_step = sum(len(e) for e in examples) / Batches(examples, **options).per_epoch
    steps = round(given.teacher_tokens / tokens_a_step)
    greedy = Decoding(max_new_tokens=24)
    scores: dict[str, list[Scores]] = {arm: [] for arm in ("teacher", *ARMS)}
    spent: dict[str, list[tuple[int, float]]] = {arm: [] for arm in scores}
    scores["teacher"].append(task.evaluate(teacher, tokenizer, split["test"], measuring, greedy).scores)
    for seed in range(given.seeds):
        torch.manual_seed(seed + 1)
        start = model_of(tokenizer, 1, 48)
        train(start, NextToken(), Batches(examples, seed=seed, **options), settings(given.student_steps, 3e-3),
              seed=seed, progress=False)  # fmt: skip
        for arm in ARMS:
            student, counting = copy.deepcopy(start), Counting(teacher)
            began, read = time.process_time(), 0
            stream: Any = Batches(examples, seed=seed, **options)
            objective: Any = NextToken()
            if arm == "sequence level":
                made = teacher_answers(teacher, tokenizer, examples, greedy, context=CONTEXT, batch_size=64)
                read, stream = sum(map(len, made)), Batches(made, seed=seed, **options)
            elif "KL" in arm or "JSD" in arm:
                name = "reverse_kl" if "reverse" in arm else "jsd" if "JSD" in arm else "forward_kl"
                objective = Distillation(counting, alpha=0.0, beta=1.0, divergence=name, on="answers")
            if arm.startswith("on-policy"):
                share = 0.5 if "0.5" in arm else 1.0
                prompts = Batches(examples, seed=seed, collate_fn=keep_rows, **options)
                stream = OnPolicy(prompts, student, tokenizer, Mixing(share=share, max_new_tokens=24), seed=seed)
            if arm != "student before":
                train(student, objective, stream, settings(steps, 1e-3), seed=seed, progress=False)
            spent[arm].append((read + counting.read_tokens, time.process_time() - began))
            scores[arm].append(task.evaluate(student, tokenizer, split["test"], measuring, greedy).scores)
            print(seed, arm, spent[arm][-1], flush=True)
    figures = [s for s in task.statistics(scores["teacher"][0].columns) if s.name in ("nats per token", "f1", "exact")]
    print(f"{len(split['train'])} train and {len(split['test'])} test rows, {steps} steps of {BATCH}")
    for arm, some in scores.items():
        cells = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (interval(some, s) for s in figures)]
        tokens = sum(t for t, _ in spent[arm]) // max(len(spent[arm]), 1)
        seconds = sum(s for _, s in spent[arm]) / max(len(spent[arm]), 1)
        against = ""
        if arm.startswith(("on-policy", "sequence")):
            found = compare(scores["plain, forward KL"], some, figures[1])
            against = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p {found.p:.2g}"
        print(" | ".join(["", arm, *cells, f"{tokens:,}", f"{seconds:.1f}", against, ""]).strip())
    print("figures:", ", ".join(s.name for s in figures))


if __name__ == "__main__":
    main()
