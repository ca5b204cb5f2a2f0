"""Grids: scales, rounding, packing and exact sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.config import build
from limbeck.errors import ConfigError, TechniqueError
from limbeck.kernels.packed_layout import Codes, Layout, pack_int4, unpack_int4
from limbeck.techniques.grid import Grid, encode, measure, nearest_codes, numbers_of, search, spread, stored
from tests.reference.slow_gptq import slow_ggml

INTEGERS = [
    Grid(format=f, symmetric=s, granularity=g, **({"group_size": n} if n else {}))
    for f in ("int8", "int4")
    for s in (True, False)
    for g, n in (("tensor", 0), ("channel", 0), ("group", 32), ("group", 64), ("group", 128))
]
SCALED = [*INTEGERS, *(Grid(format=f) for f in ("fp8_e4m3", "fp8_e5m2", "q8_0", "q4_0", "q4_1"))]
PLAIN = [Grid(format=f) for f in ("fp64", "fp32", "bf16", "fp16")]


def ids(grid: Grid) -> str:
    return f"{grid.format}-{'sym' if grid.symmetric else 'asym'}-{grid.granularity}{grid.group_size or ''}"


def weight(rows: int = 7, columns: int = 172, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g, dtype=torch.float64).mul(0.05).to(dtype)


def slow_scales(w: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and lowest value of every single weight, by loops over rows and groups, before rounding."""
    span = {"tensor": 0, "channel": w.shape[1], "group": grid.group_size}[grid.granularity]
    scale, low = torch.zeros_like(w), torch.zeros_like(w)
    largest = {"int8": 127, "int4": 7, "fp8_e4m3": 448, "fp8_e5m2": 57344}[grid.kind]
    for r in range(w.shape[0]):
        for c in range(0, w.shape[1], span or w.shape[1]):
            part = w if span == 0 else w[r : r + 1, c : c + span]
            end = c + (span or w.shape[1])
            if grid.symmetric:
                scale[r, c:end] = part.abs().max() / largest
            else:
                scale[r, c:end] = (part.max() - part.min()) / (2**grid.bits - 1)
                low[r, c:end] = part.min()
    return scale, low


@pytest.mark.parametrize("grid", [g for g in SCALED if not g.gguf], ids=ids)
@pytest.mark.parametrize("columns", [172, 128, 31])
def test_every_weight_is_within_half_a_step_of_a_slow_scale(grid: Grid, columns: int):
    w = weight(columns=columns, dtype=torch.float64)
    scale, low = slow_scales(w, grid)
    got = encode(w, grid).decode(torch.float64)
    if grid.kind.startswith("fp8"):
        bits = 3 if grid.format == "fp8_e4m3" else 2
        smallest = 2.0**-9 if grid.format == "fp8_e4m3" else 2.0**-16
        bound = w.abs() * 2.0 ** -(bits + 1) * 1.0001 + scale * smallest
    else:
        slack = 2e-3 if grid.scale_dtype == "fp16" else 1e-6
        bound = scale * (0.5 + slack * 2**grid.bits)
    assert bool(((got - w).abs() <= bound).all())
    assert float((got - w).abs().max()) > 0
    if not grid.symmetric:
        assert float((got.min() - w.min()).abs()) <= float(scale.max())
        assert float(low.min()) == float(w.min())


@pytest.mark.parametrize("grid", [*SCALED, *PLAIN], ids=ids)
@pytest.mark.parametrize("shape", [(7, 172), (16, 64), (1, 1), (3, 33)])
def test_stated_bytes_are_those_of_the_tensors(grid: Grid, shape: tuple[int, int]):
    codes = encode(weight(*shape), grid)
    tensors = [x for x in (codes.codes, codes.scales, codes.zeros) if x is not None]
    assert sum(x.numel() * x.element_size() for x in tensors) == codes.layout.bytes == grid.layout(*shape).bytes
    empty = codes.layout.empty("meta")
    for a, b in zip((codes.codes, codes.scales, codes.zeros), (empty.codes, empty.scales, empty.zeros), strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape, a.dtype) == (b.shape, b.dtype)


def test_int4_groups_take_4_and_a_half_bits():
    assert Grid(format="int4").layout(3072, 768).bytes * 8 == 3072 * 768 * 4.5
    assert Grid(format="int8").layout(3072, 768).bytes == 3072 * 768 + 4 * 3072


@pytest.mark.parametrize("grid", [*SCALED, *PLAIN], ids=ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_encoding_twice_changes_nothing_more(grid: Grid, dtype: torch.dtype):
    w = weight(dtype=dtype)
    once = encode(w, grid)
    value = once.decode(torch.float64 if dtype == torch.float64 else torch.float32)
    step = 0 if once.scales is None else float(once.scales.abs().max())
    assert value.dtype != torch.bfloat16
    assert float((encode(value, grid).decode(value.dtype) - value).abs().max()) <= 0.51 * step
    kept = once.decode(torch.bfloat16)
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, once.decode(torch.float32).to(torch.bfloat16))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=40)
def test_nibbles_survive_packing(rows: int, columns: int, seed: int):
    nibbles = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(nibbles)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert torch.equal(unpack_int4(packed, columns).long(), nibbles)
    assert int(packed[0, 0]) & 15 == int(nibbles[0, 0])  # the even column is the low nibble


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
@given(
    seed=st.integers(0, 2**31), power=st.integers(-3, 3), special=st.sampled_from(["none", "zeros", "ties", "equal"])
)
@settings(max_examples=60)
def test_gguf_grids_are_ggml_s_bit_for_bit(name: str, seed: int, power: int, special: str):
    w = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    if special == "zeros":
        w[0, :32] = 0
    elif special == "ties":
        w[:, 5], w[:, 9] = w.abs().max() * 2, -w.abs().max() * 2
    elif special == "equal":
        w[1, 32:] = w[1, 32]
    got = encode(w, Grid(format=name))
    integers = got.codes if name == "q8_0" else unpack_int4(got.codes, 64)
    for r in range(2):
        for g in range(2):
            d, m, codes = slow_ggml(name, w[r, 32 * g : 32 * g + 32].tolist())
            assert float(got.scales[r, g]) == d
            assert integers[r, 32 * g : 32 * g + 32].tolist() == codes
            if name == "q4_1":
                assert float(got.zeros[r, g]) == m


@pytest.mark.parametrize("grid", SCALED, ids=ids)
def test_search_never_has_more_squared_error(grid: Grid):
    w = weight(5, 100)
    w[0, 3] = 1.0  # an outlier is what clipping is for

    def error(codes: Codes) -> float:
        return float((codes.decode() - w).pow(2).sum())

    plain, searched = error(encode(w, grid)), error(encode(w, grid, clip="search"))
    assert searched <= plain * (1 + 1e-6)
    if grid.bits == 4 and grid.granularity == "channel":
        assert searched < 0.95 * plain


def test_search_finds_the_best_of_its_ratios_for_every_row():
    w, grid = weight(4, 48), Grid(format="int4", granularity="channel")
    got = search(w, grid).scales
    for r in range(4):
        tried = []
        for i in range(25):
            step = measure(w[r : r + 1], grid).scales * (1 - 0.025 * i)
            tried.append(float(((w[r] / step).round().clamp(-8, 7) * step - w[r]).pow(2).sum()))
        best = min(range(25), key=tried.__getitem__)
        assert float(got[r, 0]) == pytest.approx(float(w[r].abs().max()) / 7 * (1 - 0.025 * best), rel=1e-5)


@pytest.mark.parametrize("grid", SCALED, ids=ids)
def test_numbers_of_codes_are_what_decoding_gives(grid: Grid):
    w = weight(dtype=torch.float32)
    chosen = measure(w, grid)
    kept = stored(chosen.scales, chosen.zeros, torch.float32)
    layout = grid.layout(*w.shape)
    low = None if kept.low is None else spread(kept.low, layout)
    wide = kept._replace(step=spread(kept.step, layout), low=low)
    codes = nearest_codes(w, wide, grid)
    packed = pack_int4(codes) if grid.kind == "int4" else codes
    assert torch.equal(numbers_of(codes, wide, grid), Codes(layout, packed, kept.scales, kept.zeros).decode())


@pytest.mark.parametrize("grid", SCALED, ids=ids)
def test_zeros_stay_zero_and_finite(grid: Grid):
    codes = encode(torch.zeros(3, 40), grid, clip="search")
    assert torch.equal(codes.decode(), torch.zeros(3, 40))


@pytest.mark.parametrize("grid", [*SCALED, *PLAIN], ids=ids)
def test_rows_taken_are_rows_of_the_whole(grid: Grid):
    codes = encode(weight(), grid)
    index = torch.tensor([3, 0, 3, 6])
    assert torch.equal(codes.take(index).decode(), codes.decode()[index])
    assert torch.equal(codes.take(slice(2, 5)).decode(), codes.decode()[2:5])
    assert codes.take(index).layout.rows == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "q4_0", "group_size": 64}, "fixes group_size to 32"),
        ({"format": "q4_0", "symmetric": False}, "fixes symmetric to True"),
        ({"format": "bf16", "granularity": "channel"}, "takes no granularity"),
        ({"format": "int8", "granularity": "none"}, "needs a granularity"),
        ({"format": "int4", "granularity": "channel", "group_size": 32}, "does not go with"),
        ({"format": "fp8_e4m3", "symmetric": False}, "only integers take an offset"),
        ({"format": "int9"}, "int9"),
        ({"format": "int4", "scale_dtype": "double"}, "it is nf4's; choose fp16 or fp32"),
        ({"format": "nf4", "symmetric": False}, "only integers take an offset"),
        ({"formt": "int4"}, "did you mean 'format'"),
    ],
)
def test_impossible_grids_are_refused(values: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        build(Grid, values)


def test_defaults_follow_the_format():
    assert Grid(format="int4") == Grid(format="int4", granularity="group", group_size=32, scale_dtype="fp16")
    assert Grid(format="int8", group_size=64).granularity == "group"
    assert Grid.model_validate("q4_1") == Grid(format="q4_1") and not Grid(format="q4_1").symmetric
    assert Grid.model_validate(Grid(format="q8_0").model_dump()) == Grid(format="q8_0")
    assert Grid.model_validate(Grid()) == Grid() and Grid().gguf is False
    with pytest.raises(ValueError, match="dict"):
        Grid.model_validate(7)


def test_values_that_are_not_finite_or_do_not_fit_are_refused():
    bad = torch.ones(2, 32)
    bad[1, 3] = torch.inf
    with pytest.raises(TechniqueError, match="not finite"):
        encode(bad, Grid(format="int8"))
    with pytest.raises(TechniqueError, match="fp16 cannot hold"):
        encode(torch.full((2, 32), 1e5), Grid(format="fp16"))
    with pytest.raises(TechniqueError, match="set scale_dtype to fp32"):
        encode(torch.full((2, 32), 1e7), Grid(format="int4"))
    assert bool(encode(torch.full((2, 32), 1e7), Grid(format="int4", scale_dtype="fp32")).decode().isfinite().all())


def test_a_layout_is_a_value():
    assert Layout("int4", 3, 5).bytes == 9 and Grid(format="bf16").layout(3, 5) == Layout("bf16", 3, 5)
