"""Quantization-aware fine-tuning: gradients, LSQ's formulas, composition."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.lora import LoRA
from limbeck.techniques.qat import QAT, FakeEmbedding, FakeLinear, FakeWeight
from limbeck.techniques.quantized import WeightMatrix
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import apply_all, convert_all, deployed
from tests.reference.quantized import batches, decoder, nll, reference_logits

LEARNED = [
    Grid(format="int4"), Grid(format="int4", symmetric=False), Grid(format="int8"),
    Grid(format="int8", symmetric=False), Grid(format="int4", granularity="tensor"), Grid(format="fp8_e4m3"),
    Grid(format="q4_0"), Grid(format="q4_1"),
]  # fmt: skip


def fake(grid: Grid, learned: bool, rows: int = 5, columns: int = 40, dtype: torch.dtype = torch.float64) -> FakeWeight:
    table = torch.nn.Embedding(rows, columns, dtype=dtype)
    return FakeWeight(WeightMatrix("embed", table, grid), learned, start=True)


@pytest.mark.parametrize("grid", [*LEARNED, Grid(format="bf16")], ids=str)
def test_forward_is_the_rounding_and_gradients_pass_straight_through(grid: Grid):
    weight = fake(grid, learned=False)
    value = weight.value()
    assert torch.equal(value, encode(weight.latent, grid).decode(torch.float64))
    g = torch.randn_like(value)
    value.backward(g)
    assert torch.equal(weight.latent.grad, g)


@pytest.mark.parametrize("grid", LEARNED, ids=str)
def test_learned_scales_follow_lsq_s_gradient(grid: Grid):
    """Against the formulas written out a weight at a time (Esser et al. 2020, eq. 3 and 5, section 2.2)."""
    weight = fake(grid, learned=True)
    with torch.no_grad():
        weight.scales *= 0.6  # so that some weights lie beyond the range
    value = weight.value()
    g = torch.randn_like(value)
    value.backward(g)
    stored = weight.codes()
    low, high = {"int8": (-128, 127), "int4": (-8, 7), "fp8_e4m3": (-448, 448)}[grid.kind]
    if grid.kind == "int4" and stored.zeros is not None:
        low, high = 0, 15
    span = stored.layout.span or 40
    d_scale, d_zero = torch.zeros(stored.scales.shape).double(), torch.zeros(stored.scales.shape).double()
    inside_all = torch.zeros(5, 40, dtype=torch.bool)
    shared = 200 if stored.layout.span == 0 else span
    for r in range(5):
        for c in range(40):
            at = (0, 0) if stored.layout.span == 0 else (r, c // span)
            s = float(stored.scales[at])
            z = 0.0 if stored.zeros is None else float(stored.zeros[at])
            v = (float(weight.latent.detach()[r, c]) - z) / s
            inside = low <= v <= high
            code = (float(value.detach()[r, c]) - z) / s
            d_scale[at] += g[r, c] * (code - v if inside else (low if v < low else high)) / (shared * high) ** 0.5
            d_zero[at] += g[r, c] * (not inside) / (shared * high) ** 0.5
            inside_all[r, c] = inside
    assert bool((~inside_all).any()) and bool(inside_all.any())
    assert torch.equal(weight.latent.grad, g * inside_all)
    assert torch.allclose(weight.scales.grad.view(d_scale.shape), d_scale, atol=1e-9)
    if weight.zeros is not None:
        assert torch.allclose(weight.zeros.grad.view(d_zero.shape), d_zero, atol=1e-9)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("grid", LEARNED, ids=str)
def test_rows_looked_up_are_rows_of_the_whole(grid: Grid, learned: bool):
    weight = fake(grid, learned, dtype=torch.float32)
    ids = torch.tensor([3, 0, 3])
    assert torch.equal(weight.rows(ids), weight.value()[ids])
    weight.rows(ids).sum().backward()
    by_rows = {n: p.grad.clone() for n, p in weight.named_parameters()}
    weight.zero_grad()
    weight.value()[ids].sum().backward()
    for n, p in weight.named_parameters():
        assert torch.allclose(by_rows[n], p.grad, atol=1e-5)


@pytest.mark.parametrize("technique", [QAT(bits=4), QAT(bits=4, learned_scales=True)], ids=["dynamic", "learned"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_wins_back_what_rounding_lost(technique: QAT, tied: bool):
    text = batches(1)[0]

    def train(model: Decoder, steps: int, rate: float) -> Decoder:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            nll(model, text).backward()
            optimizer.step()
        return model

    def loss(model: Decoder) -> float:
        return float(nll(model, text).detach())

    state = train(decoder(tied=tied), 12, 1e-2).state_dict()

    def fresh() -> Decoder:
        model = decoder(tied=tied)
        model.load_state_dict(state)
        return model

    full, rounded = loss(fresh()), loss(RTN(bits=4).apply(fresh()))
    tuned, _ = technique.convert(train(technique.apply(fresh()), 6, 1e-3))
    assert rounded > full
    assert loss(tuned) < full + 0.5 * (rounded - full)


def test_a_tied_head_trains_the_embedding_s_own_weight():
    model = QAT(bits=4, learned_scales=True).apply(decoder())
    assert isinstance(model.embed, FakeEmbedding) and isinstance(model.head, FakeLinear)
    assert model.head.fake is model.embed.fake
    assert not any(name.startswith("head") for name, _ in model.named_parameters())
    assert all(p.dim() == 1 for n, p in model.named_parameters() if n.endswith("scales"))  # no weight decay
    packed, _ = QAT(bits=4, learned_scales=True).convert(model)
    assert packed.head.quantized is packed.embed.quantized


def test_adapters_stand_beside_and_are_not_merged():
    techniques = (QAT(bits=4), LoRA(rank=2))
    model = apply_all(techniques, decoder())
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nll(model, batches(1)[0]).backward()
        optimizer.step()
    wanted = reference_logits(model)
    finished, deployed_specs = convert_all(techniques, model)
    assert torch.equal(reference_logits(finished), wanted)
    rebuilt = deployed(deployed_specs, Decoder(finished.config))
    rebuilt.load_state_dict(finished.state_dict(), strict=True)
    assert torch.equal(reference_logits(rebuilt), wanted)


@pytest.mark.parametrize("make", [lambda: QAT().apply(decoder()), lambda: RTN().apply(decoder())])
@pytest.mark.parametrize("technique", [QAT(), RTN()])
def test_a_model_on_a_grid_is_refused(make, technique: QAT | RTN):
    with pytest.raises(TechniqueError, match="quantized already|holds more than a weight"):
        technique.apply(make())


def test_a_format_without_scales_has_none_to_learn():
    with pytest.raises(TechniqueError, match="blocks.0.ffn.up is to be bf16, which has no scale"):
        QAT(learned_scales=True, overrides={"blocks.0.ffn.up": Grid(format="bf16")}).apply(decoder())


def test_there_must_be_something_to_pack():
    with pytest.raises(TechniqueError, match="no fake quantization to pack"):
        QAT().convert(decoder())


def test_a_scale_at_zero_kills_its_group_and_nothing_else():
    weight = fake(Grid(format="int4"), learned=True)
    with torch.no_grad():
        weight.scales[0] = 0
    value = weight.value()
    assert bool((value[0, :32] == 0).all()) and bool((value[1] != 0).any())
    value.sum().backward()
    assert bool(weight.latent.grad.isfinite().all()) and bool(weight.scales.grad.isfinite().all())
