from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from limbeck.losses import divergence as d
from tests.reference import losses as slow

KINDS = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3), ("jsd", 0.5), ("skew_kl", 0.1), ("skew_kl", 0.7)]
kinds = st.sampled_from(KINDS)


def logits(seed: int, n: int, v: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, n, v, generator=generator, dtype=torch.float64) * spread
    return both[0], both[1]


@given(kinds, st.integers(0, 99), st.integers(1, 5), st.integers(2, 30), st.sampled_from([0.5, 0.7, 1.0, 2.0, 4.0]))
def test_dense_equals_scipy(kind: tuple[str, float | None], seed: int, n: int, v: int, temperature: float) -> None:
    name, skew = kind
    student, teacher = logits(seed, n, v)
    got = d.divergence(d.named(name, skew), student, teacher, temperature)
    q, p = slow.softmax(student.numpy(), temperature), slow.softmax(teacher.numpy(), temperature)
    want = [slow.divergence(name, q[i], p[i], skew or 0.0) for i in range(n)]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_forward_kl_equals_scipy_entropy() -> None:
    student, teacher = logits(0, 6, 40)
    want = entropy(slow.softmax(teacher.numpy()), slow.softmax(student.numpy()), axis=1)
    np.testing.assert_allclose(d.forward_kl(student, teacher), want, rtol=1e-12)


@given(
    kinds, st.integers(0, 99), st.integers(2, 30), st.floats(0.0, 1.0), st.sampled_from([0.7, 1.0, 3.0]), st.booleans()
)
def test_topk_equals_scipy_on_the_merged_outcomes(
    kind: tuple[str, float | None], seed: int, v: int, share: float, temperature: float, padded: bool
) -> None:
    name, skew = kind
    student, teacher = logits(seed, 3, v)
    k = max(1, round(share * v))
    log_probs, ids = slow.top_k(teacher, k, temperature)
    if padded:  # the student has rows that the teacher's vocabulary has not
        student = torch.cat((student, torch.randn(3, 4, dtype=torch.float64)), dim=1)
    signal = d.TopK(log_probs, ids, temperature, v)
    got = d.divergence(d.named(name, skew), student, signal, temperature)
    for i in range(3):
        q = slow.merge(slow.softmax(student[i, :v].numpy(), temperature), ids[i].tolist())
        p = slow.merge(slow.softmax(teacher[i].numpy(), temperature), ids[i].tolist())
        assert got[i].item() == pytest.approx(slow.divergence(name, q, p, skew or 0.0), rel=1e-8, abs=1e-9)


@given(kinds, st.integers(0, 99), st.integers(3, 20))
def test_topk_is_a_lower_bound_that_grows_to_the_dense_value(kind: tuple[str, float | None], seed: int, v: int) -> None:
    student, teacher = logits(seed, 4, v)
    value = d.named(*kind)
    last = torch.zeros(4, dtype=torch.float64)
    for k in range(1, v + 1):
        log_probs, ids = slow.top_k(teacher, k)
        rest = torch.log_softmax(teacher, dim=1).scatter(1, ids, -math.inf).logsumexp(dim=1)
        now = d.divergence(value, student, d.TopK(log_probs, ids, tail=rest))
        assert (now >= last - 1e-9).all()
        last = now
    torch.testing.assert_close(last, d.divergence(value, student, teacher), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_equality_and_its_gradient_too(kind: tuple[str, float | None]) -> None:
    student = torch.randn(5, 20, dtype=torch.float64, requires_grad=True)
    for teacher in (student.detach(), d.TopK(*slow.top_k(student.detach(), 4), rows=20)):
        value = d.divergence(d.named(*kind), student, teacher)
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
        (grad,) = torch.autograd.grad(value.sum(), student)
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_slope_is_the_derivative_in_the_log_probabilities(kind: tuple[str, float | None]) -> None:
    value = d.named(*kind)
    student, teacher = (torch.log_softmax(x, dim=1) for x in logits(3, 4, 12))
    student.requires_grad_()
    plain = value.value(student, teacher)
    (grad,) = torch.autograd.grad(plain.sum(), student)
    with torch.no_grad():
        fast, slope, total = value.value_and_slope(student.detach(), teacher)
    torch.testing.assert_close(total, slope.sum(dim=1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast, plain.detach(), rtol=1e-12, atol=1e-14)
    # JSD's slope leaves out terms that cancel only in the sum over a distribution; logits see no difference.
    logit_grads = [g - student.detach().exp() * g.sum(dim=1, keepdim=True) for g in (slope, grad)]
    torch.testing.assert_close(*logit_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [None, 3])
def test_gradcheck(kind: tuple[str, float | None], k: int | None) -> None:
    student, teacher = logits(1, 3, 6, spread=1.0)
    signal = teacher if k is None else d.TopK(*slow.top_k(teacher, k, 0.7), 0.7)
    torch.autograd.gradcheck(
        lambda x: d.divergence(d.named(*kind), x, signal, 0.7), student.requires_grad_(), raise_exception=True
    )


def test_bounds_and_symmetry() -> None:
    student, teacher = logits(5, 50, 10, spread=20.0)
    half = d.jsd(student, teacher)
    assert (half <= math.log(2) + 1e-12).all()
    torch.testing.assert_close(half, d.jsd(teacher, student))
    torch.testing.assert_close(d.skew_kl(student, teacher, alpha=0.0), d.forward_kl(student, teacher))
    torch.testing.assert_close(d.reverse_kl(student, teacher), d.forward_kl(teacher, student))


def test_probabilities_that_underflow_are_harmless() -> None:
    student, teacher = torch.tensor([[0.0, 300.0, -300.0]]), torch.tensor([[0.0, 250.0, -400.0]])
    for kind in KINDS:
        assert torch.isfinite(d.divergence(d.named(*kind), student, teacher)).all()
        signal = d.TopK(torch.tensor([[0.0]]), torch.tensor([[1]]))  # a tail of no mass at all
        assert torch.isfinite(d.divergence(d.named(*kind), student, signal)).all()


def test_tail_holds_what_is_missing_to_one() -> None:
    signal = d.TopK(torch.tensor([[0.5, 0.3]], dtype=torch.float64).log(), torch.tensor([[4, 1]]))
    buckets = signal.buckets(torch.float64, 9)
    torch.testing.assert_close(buckets.exp(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))
    assert signal.buckets(torch.float64, 2).shape == (1, 2)


def test_a_given_tail_is_not_drowned_by_rounding() -> None:
    """A reverse KL to a confident teacher, in float32: 1 minus the rest would be 0 and be held at epsilon."""
    teacher, student = torch.tensor([[30.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    log_probs, ids = slow.top_k(teacher, 1)
    tail = torch.log_softmax(teacher, dim=1)[:, 1:].logsumexp(dim=1)
    want = d.reverse_kl(student.double(), d.TopK(log_probs.double(), ids, tail=tail.double()))
    got = d.reverse_kl(student, d.TopK(log_probs, ids, tail=tail))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    assert (d.reverse_kl(student, d.TopK(log_probs, ids)).double() - want).abs() > 1
    empty = d.TopK(log_probs, ids, tail=torch.tensor([-math.inf]))
    assert torch.isfinite(d.reverse_kl(student, empty)).all()


def test_teacher_is_cut_to_the_common_rows() -> None:
    student, teacher = logits(2, 3, 8)
    wide = torch.cat((teacher, torch.full((3, 2), 50.0, dtype=torch.float64)), dim=1)
    torch.testing.assert_close(d.forward_kl(student, wide), d.forward_kl(student, teacher))
    torch.testing.assert_close(d.forward_kl(wide, student), d.forward_kl(teacher, student))


def test_another_temperature_is_refused() -> None:
    student, teacher = logits(2, 3, 8)
    with pytest.raises(ValueError, match="made at temperature 2 and cannot serve at 1"):
        d.forward_kl(student, d.TopK(*slow.top_k(teacher, 3, 2.0), 2.0))


def test_more_rows_than_the_student_are_refused() -> None:
    student, teacher = logits(2, 3, 8)
    with pytest.raises(ValueError, match="shares out 9 vocabulary rows but the student has 8"):
        d.forward_kl(student, d.TopK(*slow.top_k(teacher, 3), rows=9))


def test_select_flattens() -> None:
    signal = d.TopK(torch.randn(2, 3, 4), torch.randint(9, (2, 3, 4)), 0.5, 9, torch.randn(2, 3))
    picked = signal.select(torch.tensor([5, 0]))
    assert signal.tail is not None and picked.tail is not None
    assert torch.equal(picked.tail, torch.stack((signal.tail[1, 2], signal.tail[0, 0])))
    assert torch.equal(picked.part(1, 2).log_probs[0], signal.log_probs[0, 0])
    assert picked.part(1, 2).tail == signal.tail[0, 0]
    assert torch.equal(picked.log_probs, torch.stack((signal.log_probs[1, 2], signal.log_probs[0, 0])))
    assert torch.equal(picked.ids, torch.stack((signal.ids[1, 2], signal.ids[0, 0])))
    assert (picked.temperature, picked.rows) == (0.5, 9)


def test_names() -> None:
    assert [type(d.named(name)).__name__ for name in d.names()] == ["ForwardKL", "ReverseKL", "JSD", "SkewKL"]
    assert d.named("jsd", 0.2) == d.JSD(0.2) and d.named("skew_kl", 0.2) == d.SkewKL(0.2)
    with pytest.raises(KeyError):
        d.named("kl")
    with pytest.raises(ValueError, match="takes no skew"):
        d.named("forward_kl", 0.1)
    with pytest.raises(ValueError, match="beta between 0 and 1"):
        d.JSD(1.0)
    with pytest.raises(ValueError, match="alpha in"):
        d.SkewKL(1.0)
