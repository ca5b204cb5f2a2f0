"""The C kernels by the portable forms of their vectors, 8 and 16 lanes wide, equal the references too."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from limbeck.kernels import activation, build, native
from limbeck.kernels.attention import Span, document_attention
from limbeck.kernels.fused_head import tiles
from limbeck.techniques.rtn import RTN
from tests.decode.test_step import SHAPES, steps, torch_steps
from tests.kernels import test_attention, test_packed
from tests.reference.small_model import decoder

pytestmark = pytest.mark.slow  # each build takes the compiler half a minute


@pytest.fixture(scope="module", params=[8, 16])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if native.load() is None:
        pytest.skip("no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", ("-O1", *build._FLAGS[1:], f"-DLIMBECK_PORTABLE_LANES={request.param}"))
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("native")))
        return native._open(build.built(build.compiler()))


@pytest.fixture(autouse=True)
def served(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "load", lambda: library)
    yield


@pytest.mark.parametrize("grid", test_packed.INTEGERS, ids=test_packed.ids)
@pytest.mark.parametrize(("rows", "columns"), [(53, 172), (40, 1200)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_products(grid, rows: int, columns: int, tokens: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        test_packed.test_integers_multiply_what_they_round_to(grid, rows, columns, tokens, dtype)


@pytest.mark.parametrize("layout", test_packed.layouts_of_short_codes(), ids=str)
@pytest.mark.parametrize("tokens", [3, 40])
def test_products_of_widened_weights(layout, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        test_packed.test_weights_widened_in_cache_give_products_of_fp32(layout, 53, 430, tokens, dtype, monkeypatch)


@pytest.mark.parametrize("grid", [*test_packed.INTEGERS, *test_packed.GRIDS[-5:]], ids=test_packed.ids)
@pytest.mark.parametrize("name", ["gpt2", "odd"])
def test_steps(name: str, grid) -> None:
    model = RTN(grid=grid).apply(decoder(**SHAPES[name]))
    for rows in (1, 6):
        found, exact = steps(model, rows=rows), torch_steps(model, rows=rows)
        assert float((found - exact).abs().max()) <= 5e-2 * float(exact.abs().max())


@pytest.mark.parametrize("kind", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 70).to(dtype)
    exact = activation._value(kind, x.double(), False)
    assert activation._library(kind, x) is native.load()
    torch.testing.assert_close(activation.activate(kind, x).double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likelihoods(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(5, 77).to(dtype), torch.tensor([0, 76, 3, -100, 5])
    wanted = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    nll, _, _ = tiles.likelihood_in_place(native.load(), logits.clone(), labels, gradient=True)
    torch.testing.assert_close(nll.double(), wanted, rtol=1e-6, atol=1e-6)


def test_attention_and_its_gradients() -> None:
    xs = test_attention.inputs(4, 2, torch.float32, b=2, t=131, d=20)
    weight = torch.randn(2, 4, 131, 20)
    ours = test_attention.pull(lambda q, k, v: document_attention(q, k, v, [Span(0, 2, 0, 131)]), xs, weight)
    slow = test_attention.pull(lambda q, k, v: test_attention.reference(q, k, v, torch.ones(2, 131)), xs, weight)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
