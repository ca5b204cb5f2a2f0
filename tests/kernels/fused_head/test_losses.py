from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.kernels.fused_head import losses as module
from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss, plain_linear
from limbeck.kernels.fused_head.fused import LossWeights
from limbeck.kernels.fused_head.losses import head_losses, head_sequence_log_probs
from limbeck.losses.divergence import TopK, named
from limbeck.model.linear import Linear
from tests.reference import losses as slow

WIDTH, V = 6, 19
D = torch.float64


def batch() -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(3, 8, WIDTH, dtype=D, requires_grad=True)
    labels = torch.randint(V, (3, 8))
    labels[:, ::3] = -100
    labels[1] = -100
    mask = torch.rand(3, 8) < 0.6
    return hidden, labels, mask


def heads() -> dict[str, nn.Module]:
    return {
        "linear": nn.Linear(WIDTH, V, dtype=D),
        "parts": Linear(WIDTH, {"head": V}, bias=False).to(D),
        "module": slow.Scaled(WIDTH, V, D),
    }


@pytest.mark.parametrize("kind", ["linear", "parts", "module"])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("topk", [False, True])
def test_sums_and_gradients_of_every_kind_of_head(kind: str, chunk: int | None, topk: bool) -> None:
    head, (hidden, labels, mask) = heads()[kind], batch()
    teacher_head = nn.Linear(4, V, dtype=D)
    dense = Dense(torch.randn(3, 8, 4, dtype=D), teacher_head)
    teacher_logits = teacher_head(dense.hidden).detach()
    log_probs, ids = slow.top_k(teacher_logits, V if topk else 3, 0.7)
    signal = TopK(log_probs, ids, 0.7) if topk else dense  # the whole vocabulary: equal to the dense one
    comparison = TeacherLoss(signal, named("reverse_kl"), 0.7, mask)
    got = head_losses(
        hidden, head, labels, z=True, comparison=comparison, expected=LossWeights(1.0, 0.1, 0.5), chunk_rows=chunk
    )
    logits = head(hidden)
    identity = torch.eye(V, dtype=D)
    flat = logits.flatten(0, 1)
    want = (
        slow.plain_nll(flat, identity, labels.flatten()),
        slow.plain_z(flat, identity, labels.flatten()),
        slow.plain_divergence("reverse_kl", flat, teacher_logits.flatten(0, 1), mask.flatten(), 0.7, 0.0),
    )
    leaves = [hidden, *head.parameters()]
    for a, b in zip(got, want, strict=True):
        assert a is not None and slow.relative(a, b) < 1e-10
    assert got.nll is not None and got.z is not None and got.divergence is not None
    grads = torch.autograd.grad(got.nll + 0.1 * got.z + 0.5 * got.divergence, leaves)
    for a, b in zip(grads, torch.autograd.grad(want[0] + 0.1 * want[1] + 0.5 * want[2], leaves), strict=True):
        assert slow.relative(a, b) < 1e-10


@pytest.mark.parametrize("kind", ["linear", "parts", "module"])
def test_a_divergence_alone_over_all_rows(kind: str) -> None:
    head, (hidden, _, _) = heads()[kind], batch()
    teacher = Dense(torch.randn(3, 8, WIDTH, dtype=D), slow.Scaled(WIDTH, V, D))
    got = head_losses(hidden, head, comparison=TeacherLoss(teacher, named("jsd", 0.4)))
    every = torch.ones(24, dtype=torch.bool)
    logits, theirs = head(hidden).flatten(0, 1), teacher.head(teacher.hidden).detach().flatten(0, 1)
    want = slow.plain_divergence("jsd", logits, theirs, every, 1.0, 0.4)
    assert got.nll is None and got.z is None and got.divergence is not None
    assert slow.relative(got.divergence, want) < 1e-10


@pytest.mark.parametrize("kind", ["linear", "parts", "module"])
@pytest.mark.parametrize("frozen", [False, True])
def test_sequence_log_probs(kind: str, frozen: bool) -> None:
    head, (hidden, labels, _) = heads()[kind], batch()
    head.requires_grad_(not frozen)
    got = head_sequence_log_probs(hidden, head, labels, chunk_rows=3)
    logits, identity = head(hidden), torch.eye(V, dtype=D)
    want = torch.stack([-slow.plain_nll(logits[i], identity, labels[i]) for i in range(3)])
    assert got[1] == 0
    leaves = [x for x in [hidden, *head.parameters()] if x.requires_grad]
    grads = torch.autograd.grad(got.tanh().sum(), leaves)
    assert slow.relative(got, want) < 1e-10
    for a, b in zip(grads, torch.autograd.grad(want.tanh().sum(), leaves), strict=True):
        assert slow.relative(a, b) < 1e-10


def test_another_head_s_logits_never_exist_whole() -> None:
    hidden, head = torch.randn(60, WIDTH, requires_grad=True), slow.Scaled(WIDTH, 50)
    with slow.Largest() as seen:
        sums = head_losses(hidden, head, torch.randint(50, (60,)), chunk_rows=7)
        assert sums.nll is not None
        sums.nll.backward()  # type: ignore[no-untyped-call]
    assert seen.elements <= max(7 * 50, 60 * WIDTH)


def test_chunks_of_another_head_follow_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def small(rows: int, row_bytes: int) -> int:
        asked.append((rows, row_bytes))
        return 5

    monkeypatch.setattr(module, "chunk_size", small)
    head = slow.Scaled(WIDTH, V, D)
    hidden, labels, _ = batch()
    sums = head_losses(hidden, head, labels)
    want = slow.plain_nll(head(hidden).flatten(0, 1), torch.eye(V, dtype=D), labels.flatten())
    assert sums.nll is not None and slow.relative(sums.nll, want) < 1e-10
    assert asked == [(int((labels != -100).sum()), 24 * V)]


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_nothing_counts(kind: str) -> None:
    head, (hidden, labels, _) = heads()[kind], batch()
    sums = head_losses(hidden, head, torch.full_like(labels, -100))
    assert sums.nll is not None and sums.nll == 0
    sums.nll.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and (hidden.grad == 0).all()


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_nothing_asked_for_is_an_error(kind: str) -> None:
    head, (hidden, _, mask) = heads()[kind], batch()
    with pytest.raises(ValueError, match="needs labels for a likelihood, or a comparison"):
        head_losses(hidden, head)
    teacher = Dense(torch.randn(3, 8, WIDTH, dtype=D), nn.Linear(WIDTH, V, dtype=D))
    with pytest.raises(ValueError, match="z-loss needs labels"):
        head_losses(hidden, head, z=True, comparison=TeacherLoss(teacher, named("jsd"), mask=mask))


class Adapted(nn.Linear):
    """A linear layer that is more than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_what_counts_as_a_plain_linear_layer() -> None:
    plain = nn.Linear(3, 4)
    assert plain_linear(plain) == (plain.weight, plain.bias)
    assert plain_linear(Linear(3, {"head": 4}, bias=False)) is not None
    assert plain_linear(Adapted(3, 4)) is None
    assert plain_linear(slow.Scaled(3, 4)) is None
    hooked = nn.Linear(3, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert plain_linear(hooked) is None
    codes = nn.Linear(3, 4)
    codes.weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.int8), requires_grad=False)
    assert plain_linear(codes) is None
    parametrized = nn.Linear(3, 4, bias=False)
    before = parametrized.weight.detach().clone()
    parametrize.register_parametrization(parametrized, "weight", Doubled())
    linear = plain_linear(parametrized)  # its weight is computed, and is still its whole function
    assert linear is not None and torch.equal(linear[0], before * 2)
