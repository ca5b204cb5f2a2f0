"""I8: chunked losses equal the plain full-logit loss in value and every gradient, and never hold the logits whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss
from limbeck.kernels.fused_head.fused import LossWeights
from limbeck.losses.divergence import TopK, divergence, named
from tests.reference import losses as slow
from tests.reference.fused import fused_distill, fused_nll, fused_sequence_log_probs

N, WIDTH, V, CHUNK = 96, 32, 250, 20
LOSSES = ["nll", "dense", "topk", "sequences"]


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, Dense]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(N, WIDTH), torch.randn(V, WIDTH) * 0.3, torch.randn(V)
    head = nn.Linear(24, V)
    teacher = Dense(torch.randn(N, 24), head)
    labels = torch.randint(V, (N,))
    labels[::3] = -100
    mask = torch.rand(N) < 0.7
    # every precision starts from the same numbers, those that bfloat16 can hold
    leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    head.to(torch.bfloat16).to(dtype)
    return leaves, labels, mask, Dense(teacher.hidden.bfloat16().to(dtype), head)


def fused(loss: str, leaves: list[Tensor], labels: Tensor, mask: Tensor, teacher: Dense) -> Tensor:
    hidden, weight, bias = leaves
    if loss == "nll":
        return fused_nll(hidden, weight, labels, bias=bias, chunk_rows=CHUNK)
    if loss == "sequences":
        each = fused_sequence_log_probs(hidden, weight, labels, torch.arange(N) // 24, 4, bias=bias, chunk_rows=CHUNK)
        return torch.nn.functional.softplus(each / 100).sum()
    signal = teacher if loss == "dense" else top(teacher)
    comparison = TeacherLoss(signal, named("forward_kl"), 0.7, mask)
    expected = LossWeights(0.57, divergence=0.05)
    nll, kl = fused_distill(hidden, weight, labels, comparison, bias=bias, expected=expected, chunk_rows=CHUNK)
    return 0.57 * nll + 0.05 * kl


def plain(loss: str, leaves: list[Tensor], labels: Tensor, mask: Tensor, teacher: Dense) -> Tensor:
    hidden, weight, bias = leaves
    nll = slow.plain_nll(hidden, weight, labels, bias)
    if loss == "nll":
        return nll
    if loss == "sequences":
        parts = [-slow.plain_nll(hidden[i : i + 24], weight, labels[i : i + 24], bias) for i in range(0, N, 24)]
        return torch.nn.functional.softplus(torch.stack(parts) / 100).sum()
    signal = teacher.logits(0, N) if loss == "dense" else top(teacher)
    kl = divergence(named("forward_kl"), hidden @ weight.T + bias, signal, 0.7)
    return 0.57 * nll + 0.05 * kl[mask].sum()


def top(teacher: Dense) -> TopK:
    return TopK(*slow.top_k(teacher.logits(0, N).double(), 8, 0.7), 0.7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_every_gradient(loss: str, dtype: torch.dtype, tolerance: float) -> None:
    given = inputs(dtype)
    got, want = fused(loss, *given), plain(loss, *given)
    assert got.dtype == dtype
    assert slow.relative(got, want) <= tolerance
    for a, b in zip(torch.autograd.grad(got, given[0]), torch.autograd.grad(want, given[0]), strict=True):
        assert slow.relative(a, b) <= tolerance


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_gradients_stay_near_those_of_fp32(loss: str) -> None:
    narrow, full = inputs(torch.bfloat16), inputs(torch.float32)
    got, want = fused(loss, *narrow), plain(loss, *full)
    assert got.dtype == torch.float32
    assert slow.relative(got, want) <= 1e-2
    for a, b in zip(torch.autograd.grad(got, narrow[0]), torch.autograd.grad(want, full[0]), strict=True):
        assert a.dtype == torch.bfloat16
        assert slow.relative(a, b) <= 1e-2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_never_exist_whole(loss: str, dtype: torch.dtype) -> None:
    leaves, labels, mask, teacher = inputs(dtype)
    signal = top(teacher)  # made from whole logits, outside of what is measured
    comparison = TeacherLoss(signal if loss == "topk" else teacher, named("forward_kl"), 0.7, mask)
    largest = max(x.numel() for x in leaves) + max(x.numel() for x in teacher.head.parameters())
    with slow.Largest() as seen:
        if loss in ("dense", "topk"):
            nll, kl = fused_distill(*leaves[:2], labels, comparison, chunk_rows=CHUNK)
            torch.autograd.grad(nll + 2 * kl, leaves[:2])
        else:
            torch.autograd.grad(fused(loss, leaves, labels, mask, teacher), leaves)
    assert seen.elements <= max(CHUNK * V, largest) < N * V
    with slow.Largest() as seen:  # the instrument does see them where they do exist
        slow.plain_nll(*leaves[:2], labels)
    assert seen.elements == N * V


def test_a_tied_head_adds_both_of_its_gradients() -> None:
    leaves, labels, _, _ = inputs(torch.float64)
    embedding = leaves[1]
    ids = torch.arange(N) % V

    def loss(head_loss: object) -> Tensor:
        hidden = torch.tanh(embedding[ids])
        return head_loss(hidden, embedding, labels)  # type: ignore[operator,no-any-return]

    got, want = (torch.autograd.grad(loss(f), embedding)[0] for f in (fused_nll, slow.plain_nll))
    assert slow.relative(got, want) <= 1e-10
