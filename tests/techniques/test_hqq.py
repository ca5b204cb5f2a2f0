"""HQQ: the objective falls, the optimum of an easy case is found, and what it cannot do is refused."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import build
from limbeck.errors import ConfigError, TechniqueError
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.hqq import HQQ, half_quadratic
from limbeck.techniques.rtn import RTN
from tests.reference.quantized import decoder, reference_logits

GRID = Grid(format="int4", symmetric=False, scale_dtype="fp32")


def heavy(rows: int = 6, columns: int = 70) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, columns, generator=generator) ** 3


def objective(weight: torch.Tensor, decoded: torch.Tensor, norm: float = 0.7) -> float:
    return float(((decoded - weight).abs() ** norm).sum())


@pytest.mark.parametrize("grid", [GRID, Grid(format="int3", symmetric=False, granularity="channel")])
def test_it_lowers_its_objective_and_keeps_the_steps(grid: Grid) -> None:
    weight = heavy()
    found, plain = half_quadratic(weight, grid, HQQ(grid=grid)), encode(weight, grid)
    assert objective(weight, found.decode()) < 0.97 * objective(weight, plain.decode())
    assert torch.equal(found.scales, plain.scales) and found.layout == plain.layout
    each = [((c.decode() - weight).abs() ** 0.7).sum(dim=1) for c in (found, plain)]
    assert bool((each[0] <= each[1] * (1 + 1e-6)).all())


def test_no_iteration_is_round_to_nearest() -> None:
    found, plain = half_quadratic(heavy(), GRID, HQQ(grid=GRID, iterations=0)), encode(heavy(), GRID)
    assert torch.equal(found.codes, plain.codes) and torch.equal(found.zeros, plain.zeros)


def test_weights_that_lie_on_a_grid_stay_there() -> None:
    weight = torch.arange(16.0).repeat(3, 2) * 0.25 - 1
    assert torch.equal(half_quadratic(weight, GRID, HQQ(grid=GRID)).decode(), weight)


def test_an_iteration_is_the_published_one() -> None:
    """The first step by the paper's own variables: zero = mean(code - (W - E) / step), in codes."""
    weight = heavy(1, 32).double()
    low, step = weight.min(), (weight.max() - weight.min()) / 15
    codes = ((weight - low) / step).round()
    error = weight - (codes * step + low)
    unit, beta, p = weight.square().mean().sqrt(), 3.0, 0.5
    x = error / unit
    kept = x.sign() * (x.abs() - x.abs() ** (p - 1) / beta).clamp(min=0) * unit
    zero = (codes - (weight - kept) / step).mean()
    moved = ((weight / step + zero).round().clamp(0, 15) - zero) * step
    settings = HQQ(grid=GRID, beta=beta, norm=p, iterations=1)
    found = half_quadratic(weight, GRID, settings).decode(torch.float64)
    plain = codes * step + low
    wanted = moved if objective(weight, moved, p) < objective(weight, plain, p) else plain
    assert (found - wanted).abs().max() < 1e-5


def test_a_model_is_nearer_in_most_weights() -> None:
    wanted = reference_logits(decoder(hidden_size=64, heads=2))
    found = reference_logits(HQQ(bits=4).apply(decoder(hidden_size=64, heads=2)))
    plain = reference_logits(RTN(grid=Grid(format="int4", symmetric=False)).apply(decoder(hidden_size=64, heads=2)))
    assert (found - wanted).abs().max() < 2 * (plain - wanted).abs().max()
    assert not torch.equal(found, plain)


def test_what_it_cannot_move_is_refused() -> None:
    for values in ({"grid": "int4"}, {"overrides": {"up": "int8"}}, {"grid": {"format": "nf4"}}):
        with pytest.raises(ConfigError, match="hqq moves offsets, which"):
            build(HQQ, values)
    assert HQQ(bits=3).grid == Grid(format="int3", symmetric=False)
    assert HQQ(bits=4, overrides={"up": Grid(format="bf16")}).overrides["up"] == Grid(format="bf16")
    with pytest.raises(TechniqueError, match="quantized already"):
        HQQ(bits=4).apply(RTN(bits=4).apply(decoder()))
