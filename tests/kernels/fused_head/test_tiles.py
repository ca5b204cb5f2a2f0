"""The compiled likelihood is the definition's, and serves exactly where it is the one loss."""

from __future__ import annotations

import pytest
import torch

from limbeck.kernels import native
from limbeck.kernels.fused_head import engine, tiles
from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss
from limbeck.kernels.fused_head.fused import fused_rows
from limbeck.losses.divergence import ForwardKL
from limbeck.losses.likelihood import IGNORE
from tests.reference import losses as slow
from tests.reference.fused import fused_nll, fused_nll_z

DTYPES = [torch.bfloat16, torch.float32]


def library_for(logits: torch.Tensor):
    found = tiles.compiled_likelihood(logits)
    if found is None:
        pytest.skip("no compiled likelihood on this machine")
    return found


def exact(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """nll, log-partition, sum of exp(logits - max) and the gradient of nll, by autograd in float64."""
    wide = logits.double().requires_grad_()
    nll = torch.nn.functional.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="none")
    (gradient,) = torch.autograd.grad(nll.sum(), wide)
    wide = wide.detach()
    return nll.detach(), wide.logsumexp(1), (wide - wide.amax(1, keepdim=True)).exp().sum(1), gradient


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 63, 64, 1023, 1025, 3001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradient_are_those_of_the_definition(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(17, vocabulary)).to(dtype)
    labels = torch.randint(vocabulary, (17,))
    labels[::4] = IGNORE
    nll, partition, total, gradient = exact(logits, labels)
    real = labels != IGNORE
    for write in (False, True):
        row = logits.clone()
        got = tiles.likelihood_in_place(library_for(row), row, labels, write)
        for ours, wanted in zip(got, (nll, partition, total), strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), wanted, rtol=1e-6, atol=2e-6)
        if not write:
            assert torch.equal(row, logits)
    scaled = row.double() / got[2].double()[:, None]
    rounding = {torch.bfloat16: 2**-8, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(scaled[real], gradient[real], rtol=rounding, atol=max(rounding * 1e-2, 3e-7))
    torch.testing.assert_close(scaled[~real], logits[~real].double().softmax(1), rtol=rounding, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_no_numbers_stay_none_and_masked_ones_weigh_nothing(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 50).to(dtype)
    logits[0, 7] = float("nan")
    logits[1, 49] = float("inf")
    logits[2, 10:] = -float("inf")
    labels = torch.tensor([3, 3, 3, 3])
    nll, *_ = tiles.likelihood_in_place(library_for(logits), logits, labels, True)
    assert nll[:2].isnan().all() and nll[2:].isfinite().all()
    assert not logits[2, 10:].any()


@pytest.mark.parametrize("label", [-1, 50, -101])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    logits = torch.randn(3, 50)
    with pytest.raises(IndexError, match=r"outside 0\.\.49"):
        tiles.likelihood_in_place(library_for(logits), logits, torch.tensor([0, label, IGNORE]), True)


def test_no_rows_and_any_number_of_threads() -> None:
    logits, labels = torch.randn(33, 700), torch.randint(700, (33,))
    library, threads = library_for(logits), torch.get_num_threads()
    whole = tiles.likelihood_in_place(library, logits, labels, False)
    assert all(x.shape == (0,) for x in tiles.likelihood_in_place(library, logits[:0], labels[:0], True))
    try:
        torch.set_num_threads(3)
        again = tiles.likelihood_in_place(library, logits, labels, False)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_the_fused_loss_is_the_same_with_and_without_it(
    compiled: bool, dtype: torch.dtype, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "load", lambda: None)
    hidden, weight = torch.randn(23, 16).to(dtype).requires_grad_(), torch.randn(91, 16).to(dtype).requires_grad_()
    labels = torch.randint(91, (23,))
    labels[[2, 9]] = IGNORE
    loss = fused_nll(hidden, weight, labels, chunk_rows=chunk_rows)
    got = torch.autograd.grad(loss, (hidden, weight))
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted_loss = slow.plain_nll(wide[0], wide[1], labels)
    wanted = torch.autograd.grad(wanted_loss, wide)
    tolerance = {torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert slow.relative(loss, wanted_loss) < tolerance
    for ours, exactly in zip(got, wanted, strict=True):
        assert slow.relative(ours, exactly) < tolerance


def test_it_serves_where_the_likelihood_is_the_one_loss_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(9, 8).requires_grad_(), torch.randn(30, 8)
    bias, labels = torch.randn(30), torch.randint(30, (9,))
    library_for(weight)
    calls = []
    real = engine.likelihood_in_place
    monkeypatch.setattr(engine, "likelihood_in_place", lambda *a: calls.append(a[3]) or real(*a))
    fused_nll(hidden, weight, labels)
    fused_nll(hidden, weight, labels, bias=bias)
    assert calls == [True, True]
    with torch.no_grad():
        fused_nll_z(hidden, weight, labels)  # values alone
    assert calls == [True, True, False]
    fused_nll_z(hidden, weight, labels)
    fused_nll(hidden, weight, labels, bias=bias.clone().requires_grad_())
    comparison = TeacherLoss(Dense(torch.randn(9, 8), torch.nn.Linear(8, 30)), ForwardKL())
    fused_rows(hidden, weight, labels, comparison=comparison)
    assert calls == [True, True, False]
