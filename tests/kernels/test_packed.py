"""Every execution path of a quantized matrix against its decoded weight."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

from limbeck.kernels import packed
from limbeck.kernels.packed import FEW_ROWS, Prepared, choose, current, dispatch, linear
from limbeck.techniques.grid import Grid, encode

GRIDS = [
    Grid(format="int8"), Grid(format="int8", granularity="tensor"), Grid(format="int8", symmetric=False),
    Grid(format="q8_0"), Grid(format="int4"), Grid(format="int4", group=128), Grid(format="q4_0"), Grid(format="q4_1"),
    Grid(format="int4", granularity="channel"), Grid(format="int4", granularity="tensor", symmetric=False),
    Grid(format="int4", granularity="channel", symmetric=False), Grid(format="fp8_e4m3"), Grid(format="fp8_e5m2"),
    Grid(format="bf16"), Grid(format="fp16"), Grid(format="fp32"),
]  # fmt: skip


def ids(grid: Grid) -> str:
    return f"{grid.format}-{'sym' if grid.symmetric else 'asym'}-{grid.granularity}{grid.group or ''}"


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "_said", set())


def prepared(grid: Grid, rows: int = 53, columns: int = 172) -> Prepared:
    g = torch.Generator().manual_seed(1)
    return Prepared(encode(torch.randn(rows, columns, generator=g) * 0.05, grid))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("grid", GRIDS, ids=ids)
@pytest.mark.parametrize("path", ["reference", "dequantize", "packed", "auto"])
@pytest.mark.parametrize(("rows", "columns"), [(53, 172), (64, 128), (1, 33), (17, 320)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.filterwarnings("ignore:no packed kernel")
def test_every_path_multiplies_by_the_decoded_weight(grid: Grid, path: str, rows: int, columns: int, tokens: int):
    weight = prepared(grid, rows, columns)
    x = torch.randn(2, tokens, columns)
    bias = torch.randn(rows)
    wanted = x.double() @ weight.codes.decode(torch.float64).t() + bias.double()
    with dispatch(path), torch.no_grad():
        got = linear(x, weight, bias)
    assert got.shape == (2, tokens, rows) and got.dtype == torch.float32
    assert relative(got, wanted) < (1e-6 if path == "reference" else 1e-2)


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


def test_few_rows_are_packed_and_many_are_not():
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


def test_a_kernel_that_fails_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("not built")

    monkeypatch.setattr(torch, "_weight_int8pack_mm", broken)
    weight, x = prepared(Grid(format="int8")), torch.randn(1, 172)
    with pytest.warns(UserWarning, match="kernel failed here .not built."):
        got = linear(x, weight)
    assert relative(got, x @ weight.codes.decode().t()) < 1e-2


def test_a_machine_without_vector_kernels_or_bf16_dequantizes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    weight, x = prepared(Grid(format="int4")), torch.randn(1, 172)
    assert not weight.supports_packed() and choose(weight, 1, torch.float32) == "dequantize"
    with pytest.warns(UserWarning, match="no bf16 products"):
        got = linear(x, weight)
    assert relative(got, x @ weight.codes.decode().t()) < 1e-6
    assert not Prepared(encode(torch.ones(2, 2), Grid()).layout.empty("meta")).supports_packed()


def test_large_weights_are_written_out_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "_BLOCK_ELEMENTS", 16 * 172)
    for grid in (Grid(format="int8"), Grid(format="int4", symmetric=False)):
        weight, x = prepared(grid), torch.randn(40, 172)
        with dispatch("dequantize"):
            assert relative(linear(x, weight), x @ weight.codes.decode().t()) < 1e-2


def test_work_begun_in_inference_mode_serves_outside_of_it():
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
