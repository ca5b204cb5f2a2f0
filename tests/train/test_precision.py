"""bf16 weights with fp32 masters: nothing is lost, nothing is cast twice."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.errors import CheckpointError, ConfigError
from limbeck.train import precision as module
from limbeck.train.loop import train
from limbeck.train.precision import TrainedWeights, emulates_bf16, fastest, join_halves, split_halves
from limbeck.train.settings import TrainSettings
from tests.reference.training import PlainNextToken, Random, same, tiny, weights


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30))
def test_halves_join_to_the_same_bits(bits: list[int]) -> None:
    wide = torch.tensor(struct.unpack(f"{len(bits)}i", struct.pack(f"{len(bits)}I", *bits)), dtype=torch.int32)
    narrow, low = split_halves(wide.view(torch.float32))
    assert narrow.dtype == torch.bfloat16 and low.dtype == torch.int16
    assert torch.equal(join_halves(narrow, low).view(torch.int32), wide)


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_the_narrow_half_is_the_nearest_bf16(value: float) -> None:
    wide = torch.tensor([value])
    narrow, _ = split_halves(wide)
    assert (narrow.double() - wide.double()).abs() == (wide.bfloat16().double() - wide.double()).abs()


def backward(model: nn.Module, index: int = 0) -> None:
    terms = PlainNextToken(0.1)(model, Random().at(index))
    (terms["nll"].sum + terms["pull"].sum).backward()


def test_masters_collect_in_fp32_and_the_model_holds_no_gradient() -> None:
    model = tiny()
    exact = weights(model)
    held = TrainedWeights(model, "bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in held.trained.values()} == {torch.float32}
    assert same(dict(held.trained), exact)
    singles = []
    for index in range(2):
        backward(model, index)
        assert all(p.grad is None for p in model.parameters())
        singles.append({n: p.grad.clone() for n, p in held.trained.items()})
        held.clear_gradients(keep=False)
    backward(model, 0)
    backward(model, 1)
    for name, master in held.trained.items():
        assert master.grad.dtype == torch.float32
        assert torch.equal(master.grad, singles[0][name] + singles[1][name])  # bf16 would round the sum
    held.clear_gradients(keep=True)
    assert all(not p.grad.any() for p in held.trained.values())
    held.clear_gradients(keep=False)
    assert all(p.grad is None for p in held.trained.values())


def test_alone_the_gradients_stay_with_the_model_in_bf16() -> None:
    model, other = tiny(), tiny()
    held, apart = TrainedWeights(model, "bf16", alone=True), TrainedWeights(other, "bf16")
    backward(model)
    backward(other)
    assert all(p.grad is None for p in held.trained.values())
    assert {g.dtype for g in held.gradients().values()} == {torch.bfloat16}
    assert same({n: g.float() for n, g in held.gradients().items()}, apart.gradients())
    held.clear_gradients(keep=True)
    assert all(not g.any() for g in held.gradients().values())
    held.clear_gradients(keep=False)
    assert not held.gradients()


def test_small_updates_are_not_lost_and_come_out_in_fp32() -> None:
    model = tiny()
    start = weights(model)
    held = TrainedWeights(model, "bf16")
    for _ in range(8):
        with torch.no_grad():
            for p in held.trained.values():
                p.add_(1e-5)
        held.publish()
    assert torch.equal(model.embed.weight, held.trained["embed.weight"].bfloat16())
    held.release()
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.detach(), start[name] + 8e-5, rtol=0, atol=1e-6)
    assert model.head.weight is model.embed.weight
    backward(model)
    assert all(p.grad is not None for p in model.parameters())  # no hook is left to take it


def frozen_but_norms(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = tiny().to(dtype)
    for p in model.parameters():
        p.requires_grad_(p.ndim == 1)
    return model


def test_frozen_weights_have_no_master_and_come_back_bit_for_bit() -> None:
    model = frozen_but_norms()
    start = weights(model)
    held = TrainedWeights(model, "bf16")
    assert "embed.weight" not in held.trained
    assert model.embed.weight.dtype == torch.bfloat16
    changing, frozen = held.state()
    assert same(changing | frozen, start)
    held.release()
    assert same(weights(model), start)


def test_frozen_bf16_weights_need_nothing_beside_them() -> None:
    model = frozen_but_norms(torch.bfloat16)
    start = {n: w.float() for n, w in weights(model).items()}
    held = TrainedWeights(model, "bf16")
    assert not held._halves
    changing, frozen = held.state()
    assert same(changing | frozen, start)
    held.load(changing | {n: f + 1e-4 for n, f in frozen.items()})  # other weights: what bf16 drops is kept now
    assert same(held.state()[1], {n: f + 1e-4 for n, f in frozen.items()})
    held.release()
    assert same(weights(model), changing | {n: f + 1e-4 for n, f in frozen.items()})


def test_training_in_bf16_follows_fp32_and_leaves_frozen_weights_alone() -> None:
    ends = {}
    for precision in ("fp32", "bf16"):
        model = frozen_but_norms()
        start = weights(model)
        settings = TrainSettings(steps=20, learning_rate=1e-2, precision=precision)
        train(model, PlainNextToken(), Random(), settings, progress=False)
        ends[precision] = weights(model)
        assert torch.equal(ends[precision]["embed.weight"], start["embed.weight"])
        assert not torch.equal(ends[precision]["norm.bias"], start["norm.bias"])
    difference = ends["fp32"]["norm.bias"] - ends["bf16"]["norm.bias"]
    moved = ends["fp32"]["norm.bias"] - start["norm.bias"]
    assert 0 < difference.norm() < 0.1 * moved.norm()


def test_buffers_keep_their_dtype_and_are_saved_once() -> None:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.ones(2)))
    model.register_buffer("scale", torch.tensor([1.00001]))
    model.register_buffer("scratch", torch.tensor([2.0]), persistent=False)
    model.register_parameter("codes", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    held = TrainedWeights(model, "bf16")
    assert model.scale.dtype == torch.float32 and model.codes.dtype == torch.int64
    changing, frozen = held.state()
    assert changing.keys() == {"w", "scale"} and frozen.keys() == {"codes"}
    held.load({"w": torch.zeros(2), "scale": torch.tensor([3.0]), "codes": torch.tensor([5, 6])})
    assert model.scale == 3.0 and model.codes.tolist() == [5, 6] and model.w.tolist() == [0, 0]


def test_other_dtypes_and_nothing_to_train() -> None:
    model = tiny().bfloat16()
    TrainedWeights(model, "fp64")
    assert model.dtype == torch.float64
    with pytest.raises(ConfigError, match="nothing to train"):
        TrainedWeights(tiny().requires_grad_(False), "fp32")


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model = tiny()
    held, start = TrainedWeights(model, "fp32"), weights(model)
    other = {n: w + 1 for n, w in start.items()}
    with pytest.raises(CheckpointError, match=r"'norm\.bias' is missing"):
        held.load({n: w for n, w in other.items() if n != "norm.bias"})
    with pytest.raises(CheckpointError, match=r"'norm\.bias' has shape 3, the model's is 16"):
        held.load(other | {"norm.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'stray' belongs to no weight"):
        held.load(other | {"stray": torch.zeros(())})
    assert same(weights(model), start)


@pytest.mark.parametrize(("bf16", "emulated"), [(3.0, True), (1.5, False)])
def test_a_product_tells_whether_bf16_is_emulated(bf16: float, emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([t for spent in (1.0, bf16) for _ in range(5) for t in (0.0, spent)])
    monkeypatch.setattr("limbeck.train.precision.time.perf_counter", lambda: next(clock))
    assert emulates_bf16.__wrapped__(torch.device("cpu")) is emulated
    assert not emulates_bf16.__wrapped__(torch.device("cuda"))


def test_the_fastest_is_measured_on_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    start, seen = weights(model), []
    clock = iter([0.0, 5.0, 10.0, 14.0, 20.0, 22.0, 30.0, 33.0])
    monkeypatch.setattr("limbeck.train.precision.time.perf_counter", lambda: next(clock))

    def step(twin: nn.Module, held: TrainedWeights) -> None:
        seen.append((held.precision, twin is model))
        with torch.no_grad():
            for p in held.trained.values():
                p.add_(1.0)
        held.publish()

    assert list(fastest(model, step, torch.device("cpu")).items()) == [("bf16", 2.0), ("fp32", 4.0)]
    assert seen == [("fp32", False)] * 3 + [("bf16", False)] * 3
    assert same(weights(model), start)


def test_halves_are_split_and_joined_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(3, 7)
    whole = split_halves(wide)
    monkeypatch.setattr(module, "_BLOCK", 4)
    assert all(torch.equal(a, b) for a, b in zip(split_halves(wide), whole, strict=True))
    assert torch.equal(join_halves(*whole), wide)
    assert torch.equal(join_halves(*split_halves(wide.t())), wide.t())
