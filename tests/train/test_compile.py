"""Compiled blocks learn what plain ones learn, and the model is plain again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck.config import Config
from limbeck.data.batch import Batch
from limbeck.errors import ConfigError
from limbeck.model import decoder
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Block, Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.run import Run
from limbeck.techniques.lora import LoRA
from limbeck.train import loop
from limbeck.train.compiling import WarmUp
from limbeck.train.distributed import World
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's tracer asks for it

CONFIGS = {
    "gpt2": DecoderConfig(vocab_size=61, hidden_size=16, layers=3, heads=2, context=32),
    "llama": DecoderConfig(
        vocab_size=61, hidden_size=16, layers=3, heads=2, kv_heads=1, context=32, positions="rope", norm="rms",
        activation="silu", gated=True,
    ),
}  # fmt: skip


class Recipe(Config):
    name: str = "x"


class Batches:
    """Batches of three widths: plain ones, or two documents a row."""

    def __init__(self, packed: bool) -> None:
        self.packed, self.per_epoch = packed, 4

    def at(self, index: int) -> Batch:
        g = torch.Generator().manual_seed(index)
        width = (20, 24, 31)[index % 3]
        batch = Batch.of_ids(torch.randint(0, 61, (3, width), generator=g))
        if not self.packed:
            return batch
        return replace(batch, document_ids=1 + (torch.arange(width) > 11).int().expand(3, -1), plain=False)


def learned(name: str, packed: bool, adapters: bool, **settings: object) -> tuple[list[float], Decoder]:
    torch.manual_seed(0)
    model = Decoder(CONFIGS[name])
    if adapters:
        model = LoRA(rank=2).apply(model)
    losses: list[float] = []
    train(
        model, NextToken(), Batches(packed),
        TrainSettings(steps=6, learning_rate=3e-3, precision="fp32", monitor="", **settings),
        progress=False, on_step=lambda _, seen: losses.append(seen["train/loss"]),
    )  # fmt: skip
    return losses, model


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, not translated to C: that takes a minute a test."""
    monkeypatch.setattr(decoder, "_BACKEND", "aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("eager")
def test_losses_are_those_of_plain_blocks(name: str, packed: bool, adapters: bool, checkpointing: bool) -> None:
    plain, _ = learned(name, packed, adapters)
    compiled, model = learned(name, packed, adapters, compile=True, checkpointing=checkpointing)
    assert compiled == pytest.approx(plain, rel=1e-5)
    for block in model.modules():
        if isinstance(block, Block):
            assert block._compiled_call_impl is None and "core" not in vars(block.attention)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("eager")
def test_blocks_are_traced_but_for_attention(name: str) -> None:
    model, batch = Decoder(CONFIGS[name]).train(), Batches(False).at(0)
    names = list(model.state_dict())
    counters = torch._dynamo.utils.counters
    counters.clear()
    with model.compiled():
        model(batch).sum().backward()
        assert list(model.state_dict()) == names
    # a norm, the projection before attention, the one behind it, and the rest: once for all blocks
    assert counters["stats"]["unique_graphs"] == 4
    assert counters["graph_break"] and all("disable" in reason for reason in counters["graph_break"])


@pytest.mark.usefixtures("eager")
def test_an_error_leaves_the_model_plain() -> None:
    model = Decoder(CONFIGS["gpt2"])
    with pytest.raises(RuntimeError, match="in between"), model.compiled():
        raise RuntimeError("in between")
    assert all(b._compiled_call_impl is None for b in model.blocks)


def test_a_model_without_blocks_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="Linear has no blocks to compile"):
        train(model, NextToken(), Batches(False), TrainSettings(steps=1, compile=True, monitor="", precision="fp32"))


def test_what_compiling_took_is_told_once() -> None:
    warm_up = WarmUp(True)
    told = [warm_up.after(seconds, last=False) for seconds in (9.0, 1.0, 4.0, 1.0, 1.0, 1.5, 1.0)]
    assert told == [{}] * 5 + [{"compile_seconds": 8.0}, {}]
    short = WarmUp(True)
    assert [short.after(5.0, last=False), short.after(2.0, last=True)] == [{}, {"compile_seconds": 3.0}]
    assert WarmUp(True).after(5.0, last=True) == {}  # nothing to compare it with
    assert WarmUp(False).after(5.0, last=True) == {}


@pytest.mark.usefixtures("eager")
def test_the_metrics_hold_what_compiling_took(tmp_path: Path) -> None:
    chosen = TrainSettings(steps=7, precision="fp32", monitor="", compile=True)
    with Run.create(tmp_path, Recipe()) as run:
        train(Decoder(CONFIGS["gpt2"]), NextToken(), Batches(False), chosen, run=run, progress=False)
    told = [line for line in run.metrics() if "compile_seconds" in line]
    assert [line["step"] for line in told] == [6] and told[0]["compile_seconds"] > 0


@pytest.mark.usefixtures("eager")
def test_a_third_width_compiles_nothing() -> None:
    model, counters = Decoder(CONFIGS["gpt2"]).train(), torch._dynamo.utils.counters
    counters.clear()
    graphs: list[int] = []
    with model.compiled():
        for index in range(6):
            model(Batches(False).at(index)).sum().backward()
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1]


@pytest.mark.usefixtures("eager")
def test_what_is_compiled_is_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharding trains a copy."""
    copies: list[Decoder] = []

    def shard(model: Decoder, bf16: bool) -> Decoder:
        copies.append(copy.deepcopy(model))
        return copies[0]

    class Two(World):
        def gather(self, values: Tensor) -> Tensor:
            return torch.stack((values, values))

        def share(self, value: object) -> object:
            return value

        def on_main(self, work: Callable[[], object]) -> object:
            return work()

    monkeypatch.setattr(loop, "shard", shard)
    monkeypatch.setattr(loop, "world", lambda: Two(0, 2))
    model, seen = Decoder(CONFIGS["gpt2"]), []
    chosen = TrainSettings(steps=1, precision="fp32", monitor="", compile=True, shard=True)

    def look(*_: object) -> None:
        seen.extend((m.blocks[0]._compiled_call_impl is not None) for m in (model, copies[0]))

    train(model, NextToken(), Batches(False), chosen, progress=False, on_step=look)
    assert seen == [False, True] and copies[0].blocks[0]._compiled_call_impl is None
