"""Every execution path of a quantized matrix against its decoded weight."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace

import pytest
import torch

from limbeck.kernels import native, packed
from limbeck.kernels.packed import FEW_ROWS, Prepared, choose, current, dispatch, linear
from limbeck.kernels.packed_layout import Codes, Layout
from limbeck.techniques.grid import Grid, encode

GRIDS = [
    Grid(format="int8"), Grid(format="int8", granularity="tensor"), Grid(format="int8", symmetric=False),
    Grid(format="q8_0"), Grid(format="int4"), Grid(format="int4", group_size=128), Grid(format="q4_0"),
    Grid(format="q4_1"),
    Grid(format="int4", granularity="channel"), Grid(format="int4", granularity="tensor", symmetric=False),
    Grid(format="int4", granularity="channel", symmetric=False), Grid(format="fp8_e4m3"), Grid(format="fp8_e5m2"),
    Grid(format="bf16"), Grid(format="fp16"), Grid(format="fp32"),
]  # fmt: skip


def ids(grid: Grid) -> str:
    return f"{grid.format}-{'sym' if grid.symmetric else 'asym'}-{grid.granularity}{grid.group_size or ''}"


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "_said", set())


def prepared(grid: Grid, rows: int = 53, columns: int = 172) -> Prepared:
    g = torch.Generator().manual_seed(1)
    return Prepared(encode(torch.randn(rows, columns, generator=g) * 0.05, grid))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("grid", GRIDS, ids=ids)
@pytest.mark.parametrize("path", ["reference", "dequantize", "packed", "integer", "auto"])
@pytest.mark.parametrize(("rows", "columns"), [(53, 172), (64, 128), (1, 33), (17, 320)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.filterwarnings("ignore:no packed kernel", "ignore:no product of integers")
def test_every_path_multiplies_by_the_decoded_weight(grid: Grid, path: str, rows: int, columns: int, tokens: int):
    weight = prepared(grid, rows, columns)
    x = torch.randn(2, tokens, columns)
    bias = torch.randn(rows)
    wanted = x.double() @ weight.codes.decode(torch.float64).t() + bias.double()
    with dispatch(path), torch.no_grad():
        got = linear(x, weight, bias)
    assert got.shape == (2, tokens, rows) and got.dtype == torch.float32
    assert relative(got, wanted) < (1e-6 if path == "reference" else 2e-2 if path in ("integer", "auto") else 1e-2)


@pytest.mark.parametrize("grid", GRIDS, ids=ids)
def test_fp64_is_exact_on_every_path(grid: Grid):
    weight, x = prepared(grid), torch.randn(3, 172, dtype=torch.float64)
    for path in ("auto", "packed", "dequantize"):
        with dispatch(path):
            assert choose(weight, 3, torch.float64) == "reference"
            assert relative(linear(x, weight), x @ weight.codes.decode(torch.float64).t()) < 1e-14


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("grid", [Grid(format="int4"), Grid(format="int8", symmetric=False)], ids=ids)
def test_gradients_reach_input_and_bias(grid: Grid, path: str):
    weight = prepared(grid, 5, 34)
    x = torch.randn(3, 34, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    with dispatch(path):
        assert torch.autograd.gradcheck(lambda a, b: linear(a, weight, b), (x, bias))


def test_training_is_exact_even_where_decoding_is_fast():
    weight, x = prepared(Grid(format="int8")), torch.randn(3, 172)
    exact = x @ weight.codes.decode().t()
    assert torch.equal(linear(x.clone().requires_grad_(), weight), exact)
    assert not torch.equal(linear(x, weight), exact)
    with dispatch("dequantize"):
        assert not torch.equal(linear(x.clone().requires_grad_(), weight), exact)


def test_autocast_is_followed():
    weight, x = prepared(Grid(format="int8")), torch.randn(3, 172, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert relative(x.grad, weight.codes.decode().sum(0).expand(3, -1)) < 1e-2


@pytest.fixture
def no_integers(monkeypatch: pytest.MonkeyPatch):
    """A machine without the product of integers."""
    monkeypatch.setattr(Prepared, "supports_integer", lambda self: False)


def test_few_rows_are_packed_and_many_are_not(no_integers: None):
    for kind, grid in (("int8", Grid(format="int8")), ("int4", Grid(format="int4"))):
        weight, few = prepared(grid), FEW_ROWS[kind]
        assert choose(weight, few, torch.float32) == "packed"
        assert choose(weight, few + 1, torch.float32) == "dequantize"
    assert choose(prepared(Grid(format="q8_0")), 1, torch.float32) == "dequantize"
    assert choose(prepared(Grid(format="fp32")), 1, torch.float32) == "reference"


def test_pins_nest_and_belong_to_one_thread():
    seen: list[str] = []
    with dispatch("reference"):
        with dispatch("packed"):
            assert current() == "packed"
            other = threading.Thread(target=lambda: seen.append(current()))
            other.start()
            other.join()
        assert current() == "reference"
        assert choose(prepared(Grid(format="int8")), 1, torch.float32) == "reference"
    assert current() == "auto" and seen == ["auto"]
    with pytest.raises(ValueError, match="no dispatch 'fast'"), dispatch("fast"):
        pass


def test_what_has_no_kernel_is_said_once():
    weight, x = prepared(Grid(format="q8_0")), torch.randn(1, 172)
    with dispatch("packed"):
        with pytest.warns(UserWarning, match="no packed kernel for int8"):
            linear(x, weight)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            linear(x, weight)


def test_a_kernel_that_fails_falls_back_and_says_so(no_integers: None, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("not built")

    monkeypatch.setattr(torch, "_weight_int8pack_mm", broken)
    weight, x = prepared(Grid(format="int8")), torch.randn(1, 172)
    with pytest.warns(UserWarning, match="kernel failed here .not built."):
        got = linear(x, weight)
    assert relative(got, x @ weight.codes.decode().t()) < 1e-2


def test_a_machine_without_vector_kernels_or_bf16_dequantizes(no_integers: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    weight, x = prepared(Grid(format="int4")), torch.randn(1, 172)
    assert not weight.supports_packed() and choose(weight, 1, torch.float32) == "dequantize"
    assert relative(linear(x, weight), x @ weight.codes.decode().t()) < 1e-6
    assert not Prepared(encode(torch.ones(2, 2), Grid()).layout.empty("meta")).supports_packed()


def test_large_weights_are_written_out_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "_BLOCK_ELEMENTS", 16 * 172)
    for grid in (Grid(format="int8"), Grid(format="int4", symmetric=False)):
        weight, x = prepared(grid), torch.randn(40, 172)
        with dispatch("dequantize"):
            assert relative(linear(x, weight), x @ weight.codes.decode().t()) < 1e-2


def test_work_begun_in_inference_mode_serves_outside_of_it(no_integers: None):
    weight, x = prepared(Grid(format="int4")), torch.randn(1, 172)
    with torch.inference_mode():
        first = linear(x, weight)
        with dispatch("dequantize"):
            linear(x, weight)
    with torch.no_grad():
        assert torch.equal(linear(x, weight), first)
        with dispatch("dequantize"):
            linear(x, weight)


def test_int8_runs_from_the_neutral_codes_where_it_can():
    assert prepared(Grid(format="int8"), 5, 64).int8().shape == (5, 64)
    weight = prepared(Grid(format="int8"), 5, 64)
    assert weight.int8() is weight.codes.codes
    padded = prepared(Grid(format="int8"), 5, 172)
    assert padded.int8().shape == (5, 176) and padded.int8() is padded.int8()


INTEGERS = [grid for grid in GRIDS if grid.format in ("int8", "int4", "q8_0", "q4_0", "q4_1")]


def rounded(x: torch.Tensor) -> torch.Tensor:
    """(M, C) as the product of integers sees it: int8 in blocks of 32 columns whose step is a power of two, fp64."""
    columns = x.shape[1]
    blocks = torch.nn.functional.pad(x.double(), (0, -columns % 32)).view(x.shape[0], -1, 32)
    most = blocks.abs().amax(-1, keepdim=True)
    steps = 2 ** (most.clamp(min=1e-300) / 127.49).log2().ceil()
    steps = torch.maximum(steps, (steps.amax(1, keepdim=True) * 2**-30).clamp(min=2**-126))
    return ((blocks / steps).round() * steps).flatten(1)[:, :columns]


def need_integers():
    if not prepared(Grid(format="int8")).supports_integer():
        pytest.skip("this machine has no product of integers")


@pytest.mark.parametrize("grid", INTEGERS, ids=ids)
@pytest.mark.parametrize(("rows", "columns"), [(53, 172), (64, 128), (1, 33), (17, 320), (33, 65), (40, 1200)])
@pytest.mark.parametrize("tokens", [1, 5, 6, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_multiply_what_they_round_to(grid: Grid, rows: int, columns: int, tokens: int, dtype: torch.dtype):
    need_integers()
    weight, bias = prepared(grid, rows, columns), torch.randn(rows)
    x = torch.randn(tokens, columns).to(dtype)
    x[0, : columns // 2] = 0  # whole blocks of zeros too
    wanted = rounded(x) @ weight.codes.decode(torch.float64).t() + bias.double()
    with dispatch("integer"), torch.no_grad():
        got = linear(x, weight, bias)
    assert got.dtype == dtype
    limit = {torch.float32: 2e-6, torch.bfloat16: 3e-3}[dtype]
    scale = (x.double().abs() @ weight.codes.decode(torch.float64).abs().t() + bias.double().abs()).max()
    assert float((got.double() - wanted).abs().max()) < limit * float(scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_integers_keep_small_blocks_beside_large_ones(dtype: torch.dtype, size: float):
    """Every block has a step of its own, down to 2^-30 of the row's largest; 127 of them hold all of it."""
    need_integers()
    weight = Prepared(encode(torch.eye(320), Grid(format="int8", granularity="tensor")))
    ladder = torch.tensor([1.0, 1e-2, 1e-5, 1e-8, 1e-12, 0.0, 127.4, 127.6, 63.9, 255 / 256]).repeat_interleave(32)
    x = (size * ladder * torch.linspace(-1, 1, 32).repeat(10) * torch.tensor([[1.0], [0.7]])).to(dtype)
    with dispatch("integer"), torch.no_grad():
        got = linear(x, weight)
    limit = {torch.float32: 3e-7, torch.bfloat16: 4e-3}[dtype]
    wanted = rounded(x)
    assert torch.allclose(got.double(), wanted, rtol=limit, atol=2.0**-85 * size)
    error = (x.double() - wanted).abs().view(2, 10, 32).amax(-1)
    most = x.double().abs().view(2, 10, 32).amax(-1)
    least = (most.amax(1, keepdim=True) * 2**-37).clamp(min=2**-127)
    bound = torch.maximum(most / 127, least)  # half a step is at most a 127th of the largest
    assert (error <= bound * 1.01).all()


def test_integers_serve_half_precision_through_fp32():
    need_integers()
    weight, x = prepared(Grid(format="int8")), torch.randn(3, 172).half()
    with dispatch("integer"), torch.no_grad():
        assert torch.equal(linear(x, weight), linear(x.float(), weight).half())


def test_integers_do_not_depend_on_threads_or_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch):
    need_integers()
    weight, x, threads = prepared(Grid(format="int4"), 100, 172), torch.randn(70, 172), torch.get_num_threads()
    with dispatch("integer"), torch.no_grad():
        whole = linear(x, weight)
        monkeypatch.setattr(packed, "_COMPILED_ROWS", 32)
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                assert torch.equal(linear(x, weight), whole)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.cat([linear(row[None], weight) for row in x]), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none_in_integers(bad: float, dtype: torch.dtype):
    need_integers()
    weight, x = prepared(Grid(format="int8")), torch.ones(3, 172, dtype=dtype)
    x[1, 40] = bad
    with dispatch("integer"), torch.no_grad():
        y = linear(x, weight)
    assert y[0].isfinite().all() and y[2].isfinite().all() and not y[1].isfinite().any()


def test_integers_serve_any_number_of_rows_but_where_bf16_has_units_of_its_own(monkeypatch: pytest.MonkeyPatch):
    need_integers()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for grid in INTEGERS:
        assert {choose(prepared(grid), rows, torch.bfloat16) for rows in (1, 8, 1000)} == {"integer"}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    weight = prepared(Grid(format="int4"))
    assert choose(weight, 48, torch.bfloat16) == "integer" and choose(weight, 49, torch.bfloat16) == "dequantize"
    with dispatch("integer"):
        assert choose(weight, 1000, torch.bfloat16) == "integer"


def test_a_machine_without_integers_says_so_once(no_integers: None):
    weight, x = prepared(Grid(format="int8")), torch.randn(2, 172)
    with dispatch("integer"):
        with pytest.warns(UserWarning, match="no product of integers for int8"):
            got = linear(x, weight)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            linear(x, weight)
    assert relative(got, x @ weight.codes.decode().t()) < 1e-2


def test_integers_need_no_second_copy_of_the_codes():
    need_integers()
    weight, x = prepared(Grid(format="int4")), torch.randn(2, 172)
    with torch.no_grad():
        linear(x, weight)
    assert weight._int4 is None


def layouts_of_short_codes() -> list[Layout]:
    """What the compiled product of fp32 serves: casts, fp8 and int8, by every kind of scale."""
    casts = [Layout(kind, 1, 1) for kind in ("bf16", "fp16", "fp8_e4m3")]
    spans = [("fp8_e5m2", 0, False), ("fp8_e4m3", 32, False), ("fp8_e4m3", 64, True), ("fp8_e5m2", 16, True),
             ("int8", 1 << 20, True), ("int8", 16, False), ("int8", 48, True)]  # fmt: skip
    halves = (torch.float32, torch.float16)
    return casts + [Layout(k, 1, 1, s, halves[i % 2], z) for i, (k, s, z) in enumerate(spans)]


def random_codes(layout: Layout, rows: int, columns: int) -> Codes:
    g = torch.Generator().manual_seed(2)
    span = min(layout.span, columns)
    codes = replace(layout, rows=rows, columns=columns, span=span).empty("cpu")
    numbers = torch.randn(codes.codes.shape, generator=g) * (40 if layout.kind == "int8" else 1)
    codes.codes.copy_(numbers.round() if layout.kind == "int8" else numbers)
    for i, scale in enumerate((codes.scales, codes.zeros)):
        if scale is not None:
            scale.copy_(torch.rand(scale.shape, generator=g) + 0.5 - i)
    return codes


@pytest.mark.parametrize("layout", layouts_of_short_codes(), ids=lambda x: f"{x.kind}-{x.span}-{x.offset}")
@pytest.mark.parametrize(("rows", "columns"), [(53, 172), (64, 128), (1, 33), (17, 800), (2, 5)])
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 6, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_widened_in_cache_give_products_of_fp32(
    layout: Layout, rows: int, columns: int, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    weight, bias = Prepared(random_codes(layout, rows, columns)), torch.randn(rows)
    if native.load() is None:
        pytest.skip("no compiled kernels here")
    assert weight.supports_widened() or layout.span % 16
    x = torch.randn(tokens, columns).to(dtype)
    wanted = x.double() @ weight.codes.decode(torch.float64).t() + bias.double()
    with dispatch("dequantize"), torch.no_grad():
        got = linear(x, weight, bias)
        plain = linear(x, weight)
    assert got.dtype == dtype
    scale = (x.double().abs() @ weight.codes.decode(torch.float64).abs().t() + bias.double().abs()).max()
    for value, want in ((got, wanted), (plain, wanted - bias.double())):
        assert float((value.double() - want).abs().max()) < {torch.float32: 1e-6, torch.bfloat16: 3e-3}[dtype] * scale


def test_a_weight_widened_in_cache_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    weight, threads = prepared(Grid(format="bf16"), 100, 500), torch.get_num_threads()
    for tokens in (3, 70):
        x = torch.randn(tokens, 500)
        with torch.no_grad():
            whole = linear(x, weight)
            try:
                for n in (1, 2, 5):
                    torch.set_num_threads(n)
                    assert torch.equal(linear(x, weight), whole)
            finally:
                torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", GRIDS, ids=ids)
@pytest.mark.filterwarnings("ignore")
def test_cuda_agrees(grid: Grid):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    codes = prepared(grid, 64, 256).codes
    on = [None if t is None else t.cuda() for t in (codes.codes, codes.scales, codes.zeros)]
    weight = Prepared(type(codes)(codes.layout, *on))
    for tokens in (1, 40):
        x = torch.randn(tokens, 256)
        with torch.no_grad():
            got = linear(x.cuda(), weight).cpu()
        assert relative(got, x @ codes.decode().t()) < 1e-2
