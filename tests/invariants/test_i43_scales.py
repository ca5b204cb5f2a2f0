"""I43: scales that overflow or underflow are refused with advice that works, and a lost share of quality rings."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import TechniqueError
from limbeck.jobs.reports.quantization import quality_lost
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean, ratio
from limbeck.measure.stats import compare
from limbeck.techniques.grid import Grid, encode


def matrix(factor: float) -> torch.Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 0.02 * factor


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("factor", [1 / 65536, 65536.0 * 65536])
def test_fixed_scales_are_refused_and_the_advice_can_be_followed(name: str, factor: float):
    weight = matrix(factor)
    with pytest.raises(TechniqueError, match="scale.* too (small|large) for fp16") as refused:
        encode(weight, Grid(format=name))
    kind = Grid(format=name).kind
    assert f"choose {kind} with group_size 32, scale_dtype fp32" in str(refused.value)
    advised = Grid(format=kind, granularity="group", group_size=32, scale_dtype="fp32")
    near = encode(weight, advised).decode()
    assert float((near - weight).norm() / weight.norm()) < (0.02 if kind == "int8" else 0.2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("factor", [1 / 65536, 65536.0 * 65536])
def test_scales_of_groups_are_checked_at_both_ends(factor: float, symmetric: bool):
    with pytest.raises(TechniqueError, match="set scale_dtype to fp32"):
        encode(matrix(factor), Grid(format="int4", symmetric=symmetric))
    encode(matrix(factor), Grid(format="int4", symmetric=symmetric, scale_dtype="fp32"))


def test_a_cast_is_checked_at_both_ends():
    with pytest.raises(TechniqueError, match="too small for fp16: choose bf16"):
        encode(matrix(1e-7), Grid(format="fp16"))
    encode(matrix(1e-7), Grid(format="bf16"))


def test_ordinary_weights_and_small_groups_among_them_pass():
    weight = matrix(1.0)
    weight[0], weight[1] = 0.0, 1e-9  # rows that hardly count lose nothing of the whole
    for name in ("q8_0", "q4_0", "q4_1", "int8", "fp16"):
        encode(weight, Grid(format=name))
    encode(torch.zeros(4, 32), Grid(format="q8_0"))


def test_a_lost_share_of_the_main_figure_rings():
    ids = [str(i) for i in range(20)]
    nats = ratio("nll", "tokens", name="nats per token", better="lower", unit="nats")
    before = Scores.of(ids, nll=[1.389] * 20, tokens=[1.0] * 20)
    for after, rings in ((8.0, True), (1.5, False), (1.2, False)):
        found = quality_lost(compare(before, Scores.of(ids, nll=[after] * 20, tokens=[1.0] * 20), nats), 0.1)
        assert found.fired == rings and found.threshold == 0.1
    right, wrong = (Scores.of(ids, right=[x] * 20) for x in (1.0, 0.0))
    assert quality_lost(compare(right, wrong, mean("right")), 0.1).fired
    assert not quality_lost(compare(wrong, right, mean("right")), 0.1).fired
    worse_than_none = quality_lost(compare(wrong, Scores.of(ids, right=[-1.0] * 20), mean("right")), 0.1)
    assert worse_than_none.fired and worse_than_none.value == math.inf
