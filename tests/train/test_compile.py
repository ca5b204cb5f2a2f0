"""Compiled blocks learn what plain ones learn, and the model is plain again afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.data.batch import Batch
from limbeck.errors import ConfigError
from limbeck.model import decoder
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Block, Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.techniques.lora import LoRA
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's tracer asks for it

CONFIGS = {
    "gpt2": DecoderConfig(vocab_size=61, width=16, layers=3, heads=2, context=32),
    "llama": DecoderConfig(
        vocab_size=61, width=16, layers=3, heads=2, kv_heads=1, context=32, positions="rope", norm="rms",
        activation="silu", gated=True,
    ),
}  # fmt: skip


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
