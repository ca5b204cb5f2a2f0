"""GPTQ against the textbook, against rounding, and on text too short."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed import dispatch
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid, encode, measure, spread
from limbeck.techniques.quantized_hessian import GPTQSettings, inverse_factor, solve
from limbeck.techniques.rtn import RTN
from tests.reference.quantized import batches, correlated, decoder, reference_logits
from tests.reference.slow_gptq import slow_gptq

GRIDS = [
    Grid(format="int4"), Grid(format="int4", granularity="channel"), Grid(format="int8", granularity="tensor"),
    Grid(format="int4", scale_dtype="fp32"),
]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_it_is_the_textbook_s(grid: Grid, act_order: bool, block: int):
    w = torch.randn(9, 40, dtype=torch.float64)
    x = correlated(200, 40)
    hessian = x.t() @ x / 200
    settings = GPTQSettings(act_order=act_order, damping=0.02, block=block)
    got = solve(w, hessian, grid, settings).decode(torch.float64)
    scales = measure(w, grid)
    step = spread(scales.scales.double(), grid.layout(9, 40)).expand_as(w)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist() if act_order else list(range(40))
    low, high = (-8, 7) if grid.bits == 4 else (-128, 127)
    assert float((got - slow_gptq(w, hessian, step, low, high, 0.02, order)).abs().max()) < 1e-6


@pytest.mark.parametrize(
    "grid", [Grid(format=f) for f in ("int4", "int8", "q4_0", "q4_1", "q8_0", "fp8_e4m3")], ids=lambda g: g.format
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", ["none", "search"])
def test_outputs_change_less_than_by_rounding(grid: Grid, dtype: torch.dtype, clip: str):
    w, x = torch.randn(24, 100, dtype=dtype), correlated(600, 100)

    def change(value: torch.Tensor) -> float:
        return float((x @ (value - w.double()).t()).norm())

    got = change(solve(w, x.t() @ x / 600, grid, GPTQSettings(clip=clip)).decode(torch.float64))
    assert got < 0.8 * change(encode(w, grid, clip).decode(torch.float64))


def test_layers_are_solved_on_what_the_quantized_layers_before_give():
    """Solve one layer by hand, on inputs taken from the model whose earlier layers are already quantized."""
    text, technique = batches(8), GPTQ(bits=4)
    done = technique.apply(decoder(), text)
    model = decoder()
    partly = RTN(bits=4, overrides={"blocks.*": None}).apply(model)  # as GPTQ begins: embedding and head rounded
    for name in ("attention.qkv", "attention.out", "ffn.up"):
        partly.blocks[0].set_submodule(name, done.blocks[0].get_submodule(name))
    seen: list[torch.Tensor] = []
    batch_now: list[Batch] = []
    layer = partly.blocks[0].ffn.down
    layer.register_forward_pre_hook(lambda _, a: seen.append(a[0][batch_now[-1].real].double()))
    with torch.no_grad(), dispatch("reference"):
        for batch in text:
            batch_now.append(batch)
            partly(batch)
    x = torch.cat(seen)
    wanted = solve(layer.weight, x.t() @ x / len(x), Grid(format="int4"), GPTQSettings())
    got = done.blocks[0].ffn.down.quantized.value()
    assert float((got.codes == wanted.codes).float().mean()) > 0.995  # sums in another order may flip a tie
    assert torch.equal(got.scales, wanted.scales)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_changes_less_than_by_rounding(tied: bool):
    grid, text = Grid(format="int4", granularity="channel"), batches(10)
    wanted = reference_logits(decoder(tied=tied))

    def change(technique: GPTQ | RTN) -> float:
        return float((reference_logits(technique.apply(decoder(tied=tied), text)) - wanted).norm())

    assert change(GPTQ(grid=grid, embeddings=False)) < 0.9 * change(RTN(grid=grid, embeddings=False))


def test_embeddings_are_rounded_or_left():
    model, rounded = GPTQ(bits=4).apply(decoder(), batches(8)), RTN(bits=4).apply(decoder())
    assert torch.equal(model.embed.quantized.codes, rounded.embed.quantized.codes)
    assert model.head.quantized is model.embed.quantized
    left = GPTQ(bits=4, embeddings=False).apply(decoder(), batches(8))
    assert torch.equal(left.embed.weight, decoder().embed.weight) and left.head.weight is left.embed.weight


def test_padding_is_no_calibration():
    text = batches(8)
    changed = [Batch.of_ids(torch.where(b.real, b.ids, 7), b.real.sum(1).tolist()) for b in text]
    a, b = GPTQ(bits=4).apply(decoder(), text), GPTQ(bits=4).apply(decoder(), changed)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("text", [[], batches(1)])
def test_text_too_short_is_refused_before_anything_changes(text: list[Batch]):
    model = decoder()
    tokens = sum(int(b.real.sum()) for b in text)
    with pytest.raises(TechniqueError, match=f"needs at least 144 tokens of calibration text here, not {tokens}"):
        GPTQ(bits=4).apply(model, text)
    assert torch.equal(reference_logits(model), reference_logits(decoder()))


def test_a_quantized_model_is_refused():
    with pytest.raises(TechniqueError, match="quantized already: give gptq"):
        GPTQ().apply(RTN().apply(decoder()), batches(8))


def test_damping_grows_until_the_hessian_can_be_factored():
    direction = torch.randn(30, dtype=torch.float64)
    singular = torch.outer(direction, direction)  # one input in all: far from positive definite
    upper = inverse_factor(singular - 1e-2 * torch.eye(30, dtype=torch.float64), 1e-9)
    assert bool(upper.isfinite().all()) and bool((upper.diagonal() > 0).all())
    assert bool(inverse_factor(torch.zeros(5, 5, dtype=torch.float64), 0.01).isfinite().all())
    with pytest.raises(TechniqueError, match="not finite or too alike"):
        inverse_factor(torch.full((4, 4), torch.nan, dtype=torch.float64), 0.01)


def test_the_factor_is_that_of_the_damped_inverse():
    x = correlated(100, 12)
    h = x.t() @ x
    upper = inverse_factor(h, 0.01)
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(upper.t() @ upper @ damped, torch.eye(12, dtype=torch.float64), atol=1e-9)
    assert torch.equal(upper, upper.triu())


def test_a_plain_cast_has_nothing_to_correct():
    w = torch.randn(4, 8)
    assert torch.equal(solve(w, torch.eye(8).double(), Grid(format="bf16"), GPTQSettings()).codes, w.bfloat16())


def test_training_mode_is_given_back():
    assert GPTQ(bits=4).apply(decoder(dropout=0.1).train(), batches(8)).training
