"""What one rank of several does in the tests; a program for torchrun (KIND FOLDER), or called for one rank alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from limbeck.config import Config
from limbeck.data.batches import Batches
from limbeck.data.mixture import Mixture
from limbeck.data.prompts import encode_rows
from limbeck.data.readers import read
from limbeck.data.shards import Corpus, build_shards, shard_key
from limbeck.errors import Interrupted, LimbeckError, StorageError
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import AdapterOff
from limbeck.run import Run
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import switched_off
from limbeck.train import step
from limbeck.train.distributed import World, full, group
from limbeck.train.loop import TrainResult, train
from limbeck.train.optim import sweep
from limbeck.train.settings import TrainSettings
from tests.reference.pairs import RandomPairs
from tests.reference.small_tokenizer import byte_level
from tests.reference.training import HeldOut, PlainNextToken, Random, same, tiny, weights

STEPS = 4
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fsdp": {"precision": "fp32", "shard": True},
    "fsdp_bf16": {"precision": "bf16", "shard": True},
    "dpo": {"precision": "fp32"},
}


def parts(kind: str) -> tuple[Any, Any, Any]:
    """Model, objective and stream of one kind: next tokens, or pairs against the model with its adapter off."""
    if kind != "dpo":
        return tiny(dropout=0.1), PlainNextToken(0.1), Random()
    model = LoRA(rank=2, targets=("all",)).apply(tiny())
    return model, Preference(AdapterOff(switched_off), beta=1.0), RandomPairs()


class Recipe(Config):
    """A recipe that says only what kind of training it is."""

    kind: str


class Killed(Exception):
    """Stands for a kill."""


def settings(kind: str, ranks: int) -> TrainSettings:
    """Four micro-batches a step, however many ranks share them. A large eps keeps Adam from blowing up rounding."""
    return TrainSettings(
        steps=STEPS, accumulation=4 // ranks, learning_rate=1e-2, eps=1e-2, clip_norm=0.5, log_every=1,
        evaluate_every=2, checkpoint_every=2, restore_best=False, **KINDS[kind],
    )  # fmt: skip


def open_run(folder: Path, kind: str, here: World) -> Run:
    """Rank 0 makes the folder, the others open it."""
    if here.main:
        run = Run.create(folder, Recipe(kind=kind))
    here.on_main(lambda: None)
    return run if here.main else Run.open(folder)


def fit(kind: str, folder: Path, here: World, on_step: Any = None) -> tuple[Any, TrainResult]:
    """Train a tiny model in ``folder``."""
    model, objective, stream = parts(kind)
    with open_run(folder, kind, here) as run:
        result = train(
            model, objective, stream, settings(kind, here.size), evaluations=[HeldOut()], run=run,
            seed=7, on_step=on_step, progress=False,
        )  # fmt: skip
    return model, result


def observe(kind: str, folder: Path, here: World) -> dict[str, Any]:
    """Train once, and once more killed and resumed; returns losses, gradients, and whether the two ended alike."""
    gradients: list[list[torch.Tensor]] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients.append([full(p.grad).clone() for g in optimizer.param_groups for p in g["params"]])

    def record_sweep(optimizer: Any, trained: Any, found: Any, copies: Any, divisor: torch.Tensor) -> None:
        names = {p: name for name, p in trained.items()}
        gradients.append([found[names[p]] / divisor for g in optimizer.param_groups for p in g["params"]])
        sweep(optimizer, trained, found, copies, divisor)

    hook = register_optimizer_step_pre_hook(record)
    with mock.patch.object(step, "sweep", record_sweep):
        model, result = fit(kind, folder / "whole", here)
    hook.remove()

    def kill(number: int, _: Mapping[str, float]) -> None:
        if number == 3:
            raise Killed

    try:
        fit(kind, folder / "killed", here, kill)
        raise AssertionError("it was to be killed")
    except Killed:
        pass
    again, resumed = fit(kind, folder / "killed", here)
    assert resumed.resumed_from == 2
    return {
        "gradients": gradients,
        "metrics": Run.open(folder / "whole").metrics(),
        "resumed_metrics": Run.open(folder / "killed").metrics(),
        "resumed_alike": same(weights(model), weights(again)),
        "real_tokens": result.real_tokens,
        "weights": weights(model),
    }


class Recorded:
    """A stream that keeps what was taken of it, in order: each micro-batch's index and its tokens row by row."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.per_epoch, self.taken = stream, stream.per_epoch, []  # type: ignore[var-annotated]

    def at(self, index: int) -> Any:
        batch = self.stream.at(index)
        self.taken.append((index, batch.ids.tolist(), batch.document_ids.tolist(), batch.row_ids.tolist()))
        return batch


def streams(folder: Path, here: World) -> dict[str, Any]:
    """What a training reads: corpora mixed from shards, and rows plain, packed and bucketed, the last batch short."""
    tokenizer, corpora = byte_level(), []
    for name in ("stories", "verse"):
        texts = [str(row.fields["text"]) for row in read(f"toy:{name}", limit=25)]
        place, key = folder / name, shard_key(name, tokenizer, begin=True, end=True)

        def build(place: Path = place, key: str = key, texts: list[str] = texts) -> None:
            build_shards(place, key, texts, tokenizer, begin=True, end=True)

        here.in_turn(build)
        corpora.append(Corpus(name, place, key))
    examples, _ = encode_rows(read("toy:stories", limit=25), tokenizer, 24)
    examples = examples[:41]
    common: dict[str, Any] = {"batch_size": 4, "context": 24, "pad_id": tokenizer.pad_id, "seed": 3}
    return {
        "mixture": Mixture(corpora, (0.7, 0.3), **common),
        "rows": Batches(examples, **common),
        "packed": Batches(examples, packing=True, **common),
        "bucketed": Batches(examples, bucketing=True, **common),
    }


def order(folder: Path, here: World) -> dict[str, Any]:
    """What this rank takes of every stream in a training of 12 micro-batches or an epoch and a half; and the losses."""
    out: dict[str, Any] = {}
    for name, stream in streams(folder, here).items():
        recorded, losses = Recorded(stream), list[float]()
        length: dict[str, Any] = {"steps": 3} if name == "mixture" else {"epochs": 1.5}
        settings = TrainSettings(accumulation=4 // here.size, learning_rate=1e-2, eps=1e-2, precision="fp32", **length)
        train(
            tiny(vocab_size=byte_level().vocab_size, dropout=0.1), NextToken(), recorded, settings, seed=7,
            progress=False, on_step=lambda _, found, kept=losses: kept.append(found["train/loss"]),
        )  # fmt: skip
        out[name] = {"taken": recorded.taken, "losses": losses, "per_epoch": stream.per_epoch}
    return out


def failures(folder: Path, here: World) -> dict[str, Any]:
    """A signal that reaches one rank stops both; an error of rank 0 is an error of both."""

    def ask(step: int, _: Mapping[str, float]) -> None:
        if step == 2 and here.rank == here.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    out: dict[str, Any] = {}
    try:
        fit("ddp", folder / "stopped", here, ask)
    except Interrupted as error:
        out["stopped"] = str(error)

    def refuse() -> None:
        raise StorageError("the disk is full")

    sentence = ""
    try:
        here.on_main(refuse)
    except LimbeckError as error:
        sentence = f"{type(error).__name__}: {error}"
    out["sentences"] = [here.share(sentence), sentence]
    return out


OTHERS = {"failures": failures, "order": order}

if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    with group() as here:
        outcome = OTHERS[name](where, here) if name in OTHERS else observe(name, where, here)
        torch.save(outcome, where / f"outcome-{here.rank}.pt")
