"""Fused losses against whole logits under plain autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.kernels.fused_head import fused
from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss
from limbeck.kernels.fused_head.fused import Losses, LossWeights
from limbeck.losses.divergence import TopK, divergence, named
from tests.reference import fused as wrapped
from tests.reference import losses as slow

IGNORE = -100


@dataclass
class Case:
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    teacher: Dense
    teacher_logits: Tensor
    mask: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight, self.bias]

    def comparison(self, name: str = "forward_kl", temperature: float = 1.0, skew: float | None = None) -> TeacherLoss:
        return TeacherLoss(self.teacher, named(name, skew), temperature, self.mask)


def case(n: int = 23, width: int = 7, v: int = 31, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    labels = torch.randint(v, (n,), generator=g)
    labels[torch.rand(n, generator=g) < 0.3] = IGNORE
    mask = torch.rand(n, generator=g) < 0.6
    head = nn.Linear(5, v, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(normal(v, 5))
        head.bias.copy_(normal(v))
    teacher = Dense(normal(n, 5), head)
    leaves = [normal(n, width).requires_grad_(), normal(v, width).requires_grad_(), normal(v).requires_grad_()]
    return Case(*leaves, labels, teacher, teacher.logits(0, n), mask)


def grads(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert slow.relative(a, b) <= tolerance


@given(st.integers(0, 50), st.integers(1, 40), st.integers(2, 60), st.integers(1, 50), st.booleans())
def test_nll_of_any_shape_and_chunk(seed: int, n: int, v: int, chunk: int, biased: bool) -> None:
    c = case(n, 6, v, seed)
    bias = c.bias if biased else None
    leaves = c.leaves()[: 3 if biased else 2]
    got = wrapped.fused_nll(c.hidden, c.weight, c.labels, bias=bias, chunk_rows=chunk)
    want = slow.plain_nll(c.hidden, c.weight, c.labels, bias)
    close([got, *grads(got * 0.3, leaves)], [want, *grads(want * 0.3, leaves)], 1e-10)


@pytest.mark.parametrize("expected", [LossWeights(0.5, 0.01), LossWeights(1.0, 1.0), LossWeights(1.0, 0.0)])
def test_z_loss_beside_the_likelihood(expected: LossWeights) -> None:
    c = case()
    nll, z = wrapped.fused_nll_z(c.hidden, c.weight, c.labels, bias=c.bias, expected=expected, chunk_rows=5)
    want_nll = slow.plain_nll(c.hidden, c.weight, c.labels, c.bias)
    want_z = slow.plain_z(c.hidden, c.weight, c.labels, c.bias)
    got = grads(0.5 * nll + 0.01 * z, c.leaves())
    close([nll, z, *got], [want_nll, want_z, *grads(0.5 * want_nll + 0.01 * want_z, c.leaves())], 1e-10)


@pytest.mark.parametrize(
    ("name", "skew"), [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3), ("skew_kl", 0.2), ("skew_kl", 0.0)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_divergence_to_a_dense_teacher(name: str, skew: float | None, temperature: float) -> None:
    c = case()
    got = wrapped.fused_divergence(c.hidden, c.weight, c.comparison(name, temperature, skew), bias=c.bias, chunk_rows=6)
    logits = c.hidden @ c.weight.T + c.bias
    want = slow.plain_divergence(name, logits, c.teacher_logits, c.mask, temperature, skew or 0.0)
    close([got, *grads(got, c.leaves())], [want, *grads(want, c.leaves())], 1e-10)


@given(
    st.integers(0, 50),
    st.sampled_from([("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3), ("skew_kl", 0.2)]),
    st.integers(1, 31),
    st.sampled_from([1.0, 0.7]),
    st.integers(24, 31),
)
def test_divergence_to_a_topk_teacher(
    seed: int, kind: tuple[str, float | None], k: int, temperature: float, rows: int
) -> None:
    c = case(seed=seed)
    log_probs, ids = slow.top_k(c.teacher_logits[:, :rows], min(k, rows), temperature)
    rest = (1 - log_probs.exp().sum(1)).clamp_min(1e-12).log() if seed % 2 else None
    signal = TopK(log_probs, ids, temperature, rows, rest)
    value = named(*kind)
    got = wrapped.fused_divergence(
        c.hidden, c.weight, TeacherLoss(signal, value, temperature, c.mask), bias=c.bias, chunk_rows=6
    )
    want = divergence(value, c.hidden @ c.weight.T + c.bias, signal, temperature)[c.mask].sum()
    close([got, *grads(got, c.leaves())], [want, *grads(want, c.leaves())], 1e-9)


@pytest.mark.parametrize("student_rows", [27, 31, 35])
def test_widths_that_differ_by_padding_rows(student_rows: int) -> None:
    """The divergence runs over the common rows, the likelihood over all of the student's."""
    c, other = case(), case(v=student_rows)
    labels = c.labels.where(c.labels < 27, IGNORE)
    leaves = other.leaves()
    nll, kl = wrapped.fused_distill(
        *leaves[:2], labels, c.comparison(), bias=leaves[2], expected=LossWeights(0.4, divergence=0.6), chunk_rows=9
    )
    logits, rows = leaves[0] @ leaves[1].T + leaves[2], min(31, student_rows)
    want_nll = slow.plain_nll(*leaves[:2], labels, leaves[2])
    want = slow.plain_divergence("forward_kl", logits[:, :rows], c.teacher_logits[:, :rows], c.mask, 1.0, 0.0)
    got = grads(0.4 * nll + 0.6 * kl, leaves)
    both = torch.autograd.grad(0.4 * want_nll + 0.6 * want, leaves, retain_graph=True)
    close([nll, kl, *got], [want_nll, want, *both], 1e-10)
    alone = wrapped.fused_divergence(leaves[0], leaves[1], c.comparison(), bias=leaves[2], chunk_rows=9)
    close([alone, *grads(alone, leaves)], [want, *grads(want, leaves)], 1e-10)


@pytest.mark.parametrize("came", [(0.4, 0.6), (0.8, 1.2), (1.0, 0.0), (0.0, 1.0), (3.0, -0.2)])
@pytest.mark.parametrize("expected", [LossWeights(0.4, divergence=0.6), LossWeights(1.0, divergence=0.0)])
@pytest.mark.parametrize("topk", [False, True])
def test_distill_is_exact_whatever_was_expected(came: tuple[float, float], expected: LossWeights, topk: bool) -> None:
    c = case()
    comparison = c.comparison(temperature=0.7)
    logits = c.hidden @ c.weight.T + c.bias
    if topk:
        signal = TopK(*slow.top_k(c.teacher_logits, 4, 0.7), 0.7)
        comparison = replace(comparison, teacher=signal)
        want_kl = divergence(named("forward_kl"), logits, signal, 0.7)[c.mask].sum()
    else:
        want_kl = slow.plain_divergence("forward_kl", logits, c.teacher_logits, c.mask, 0.7, 0.0)
    want_nll = slow.plain_nll(c.hidden, c.weight, c.labels, c.bias)
    nll, kl = wrapped.fused_distill(
        c.hidden, c.weight, c.labels, comparison, bias=c.bias, expected=expected, chunk_rows=8
    )
    a, b = came
    got = grads(a * nll + b * kl, c.leaves())
    close([nll, kl, *got], [want_nll, want_kl, *grads(a * want_nll + b * want_kl, c.leaves())], 1e-9)


def test_one_of_two_sums_alone() -> None:
    c = case()
    nll, kl = wrapped.fused_distill(c.hidden, c.weight, c.labels, c.comparison(), bias=c.bias, chunk_rows=8)
    want = slow.plain_nll(c.hidden, c.weight, c.labels, c.bias)
    close(list(torch.autograd.grad(nll, c.leaves(), retain_graph=True)), grads(want, c.leaves()), 1e-10)
    want = slow.plain_divergence("forward_kl", c.hidden @ c.weight.T + c.bias, c.teacher_logits, c.mask, 1.0, 0.0)
    close(grads(kl, c.leaves()), grads(want, c.leaves()), 1e-10)


def test_a_right_expectation_saves_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    c, passes = case(), 0
    real = fused.run

    def counted(*args: object) -> object:
        nonlocal passes
        passes += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "run", counted)
    for came, wanted in [((0.2, 0.3), 1), ((0.2, 0.31), 2)]:
        passes = 0
        nll, kl = wrapped.fused_distill(
            c.hidden, c.weight, c.labels, c.comparison(), bias=c.bias, expected=LossWeights(0.4, divergence=0.6)
        )
        grads(came[0] * nll + came[1] * kl, c.leaves())
        assert passes == wanted


def test_a_second_backward_gives_the_same() -> None:
    c = case()
    loss = wrapped.fused_nll(c.hidden, c.weight, c.labels, bias=c.bias, chunk_rows=5) * 0.5
    first = [x.clone() for x in torch.autograd.grad(loss, c.leaves(), retain_graph=True)]
    close(list(torch.autograd.grad(loss, c.leaves())), first, 1e-14)


@pytest.mark.parametrize("frozen", [(1, 2), (0,), (0, 1), (2,)])
def test_only_what_takes_gradients_gets_one(frozen: tuple[int, ...]) -> None:
    c = case()
    leaves = c.leaves()
    for i in frozen:
        leaves[i] = leaves[i].detach()
    trained = [x for x in leaves if x.requires_grad]
    nll, kl = wrapped.fused_distill(*leaves[:2], c.labels, c.comparison(), bias=leaves[2], chunk_rows=8)
    got = grads(nll + kl, trained)
    want_nll = slow.plain_nll(*leaves[:2], c.labels, leaves[2])
    want = want_nll + slow.plain_divergence(
        "forward_kl", leaves[0] @ leaves[1].T + leaves[2], c.teacher_logits, c.mask, 1.0, 0.0
    )
    close(got, grads(want, trained), 1e-10)


def test_the_teacher_takes_no_gradient() -> None:
    c = case()
    hidden = c.teacher.hidden.clone().requires_grad_()
    comparison = replace(c.comparison(), teacher=Dense(hidden, c.teacher.head))
    wrapped.fused_divergence(c.hidden, c.weight, comparison).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is None
    assert all(p.grad is None for p in c.teacher.head.parameters())


def test_a_teacher_head_that_is_no_linear_layer() -> None:
    c = case()
    head = slow.Scaled(5, 33, torch.float64)  # two rows more than the student
    comparison = replace(c.comparison("jsd", 0.7, 0.4), teacher=Dense(c.teacher.hidden, head))
    got = wrapped.fused_divergence(c.hidden, c.weight, comparison, bias=c.bias, chunk_rows=6)
    teacher = head(c.teacher.hidden).detach()[:, :31]
    want = slow.plain_divergence("jsd", c.hidden @ c.weight.T + c.bias, teacher, c.mask, 0.7, 0.4)
    close([got, *grads(got, c.leaves())], [want, *grads(want, c.leaves())], 1e-10)


def test_without_gradients_only_values() -> None:
    c = case()
    with torch.no_grad():
        nll, kl = wrapped.fused_distill(c.hidden, c.weight, c.labels, c.comparison(), bias=c.bias, chunk_rows=6)
    assert not nll.requires_grad and not kl.requires_grad
    want = slow.plain_nll(c.hidden, c.weight, c.labels, c.bias)
    close([nll], [want.detach()], 1e-10)
    with torch.inference_mode():
        inside = wrapped.fused_nll(c.hidden, c.weight, c.labels, bias=c.bias)
    close([inside.clone()], [want.detach()], 1e-10)


@pytest.mark.parametrize("frozen", [False, True])
def test_sequences(frozen: bool) -> None:
    c = case()
    leaves = [c.hidden, c.weight.detach() if frozen else c.weight, c.bias.detach() if frozen else c.bias]
    trained = [x for x in leaves if x.requires_grad]
    sequence = torch.arange(23) // 6
    labels = c.labels.clone()
    labels[sequence == 2] = IGNORE  # one sequence has nothing
    got = wrapped.fused_sequence_log_probs(leaves[0], leaves[1], labels, sequence, 4, bias=leaves[2], chunk_rows=5)
    want = torch.stack(
        [-slow.plain_nll(leaves[0], leaves[1], labels.where(sequence == i, IGNORE), leaves[2]) for i in range(4)]
    )
    assert got.shape == (4,) and got[2] == 0
    spread = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    close([got, *grads((got * spread).sum(), trained)], [want, *grads((want * spread).sum(), trained)], 1e-10)


def test_a_frozen_head_needs_no_second_pass_for_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    c, passes = case(), 0
    real = fused.run

    def counted(*args: object) -> object:
        nonlocal passes
        passes += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "run", counted)
    sequence = torch.arange(23) // 6
    wrapped.fused_sequence_log_probs(c.hidden, c.weight.detach(), c.labels, sequence, 4).logsumexp(0).backward()  # type: ignore[no-untyped-call]
    assert passes == 1


def test_gradcheck_in_double() -> None:
    c = case(6, 3, 5)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return wrapped.fused_distill(hidden, weight, c.labels, c.comparison("reverse_kl", 0.7), bias=bias, chunk_rows=2)

    torch.autograd.gradcheck(loss, tuple(c.leaves()))


def test_nothing_counts() -> None:
    c = case()
    nothing = torch.full_like(c.labels, IGNORE)
    loss = wrapped.fused_nll(c.hidden, c.weight, nothing, bias=c.bias)
    assert loss == 0
    assert all((g == 0).all() for g in grads(loss, c.leaves()))


def test_nothing_asked_for_is_an_error() -> None:
    c = case()
    for z, comparison in [(False, None), (True, c.comparison())]:
        with pytest.raises(ValueError, match="needs labels"):
            wrapped.fused_rows(c.hidden, c.weight, z=z, comparison=comparison)


def test_rows_come_one_by_one() -> None:
    c = case()
    rows = wrapped.fused_rows(c.hidden, c.weight, c.labels, bias=c.bias, z=True, comparison=c.comparison())
    assert isinstance(rows, Losses) and rows.nll is not None and rows.z is not None and rows.divergence is not None
    ignored = c.labels == IGNORE
    assert (rows.nll[ignored] == 0).all() and (rows.z[ignored] == 0).all() and (rows.divergence[~c.mask] == 0).all()
    # weights that differ row by row, never expected
    spread = torch.linspace(-1, 1, 23, dtype=torch.float64)
    got = grads(((rows.nll + 2 * rows.divergence + 3 * rows.z) * spread).sum(), c.leaves())
    logits = c.hidden @ c.weight.T + c.bias
    want = sum(
        spread[i]
        * (
            slow.plain_nll(c.hidden[i : i + 1], c.weight, c.labels[i : i + 1], c.bias)
            + 3 * slow.plain_z(c.hidden[i : i + 1], c.weight, c.labels[i : i + 1], c.bias)
            + 2
            * slow.plain_divergence(
                "forward_kl", logits[i : i + 1], c.teacher_logits[i : i + 1], c.mask[i : i + 1], 1.0, 0.0
            )
        )
        for i in range(23)
    )
    assert isinstance(want, Tensor)
    close(got, grads(want, c.leaves()), 1e-10)


def test_under_autocast_the_products_are_narrow_and_the_gradients_are_not() -> None:
    c = case(40, 16, 50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = wrapped.fused_nll(c.hidden, c.weight, c.labels, bias=c.bias, chunk_rows=16)
    assert loss.dtype == torch.float32
    close(grads(loss, c.leaves()), grads(slow.plain_nll(c.hidden, c.weight, c.labels, c.bias), c.leaves()), 1e-2)
    narrowed = [t.bfloat16() for t in (c.hidden, c.weight)]
    narrow = wrapped.fused_nll(*narrowed, c.labels, bias=c.bias.bfloat16(), chunk_rows=16)
    assert loss == narrow
