from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.batch import Batch, Example, collate
from limbeck.errors import ConfigError
from limbeck.kernels.fused_head import fused
from limbeck.losses.divergence import JSD, TopK, divergence
from limbeck.losses.terms import total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher
from tests.reference import losses as slow


def decoder(vocabulary: int = 30, width: int = 16) -> Decoder:
    config = DecoderConfig(vocab_size=vocabulary, context=16, layers=1, hidden_size=width, heads=2, dropout=0.1)
    model = Decoder(config).double().eval()
    with torch.no_grad():
        model.embed.weight.mul_(10)
    return model


def batch() -> Batch:
    rng = np.random.default_rng(0)
    shapes = [(9, 4), (5, 0), (12, 11)]
    examples = [
        Example(i, str(i), rng.integers(0, 30, n, dtype=np.int32), np.arange(n) >= p) for i, (n, p) in enumerate(shapes)
    ]
    return collate([[examples[0], examples[1]], [examples[2]]])


class FixedTopK:
    """A teacher of stored top tokens."""

    temperature = 0.7

    def __init__(self, model: Decoder, k: int) -> None:
        self.model, self.k = model, k

    @torch.no_grad()
    def signal(self, b: Batch) -> TopK:
        return TopK(*slow.top_k(self.model(b), self.k, 0.7), 0.7)


@pytest.mark.parametrize("on", ["all", "answers"])
@pytest.mark.parametrize("rows", [27, 30, 34])
@pytest.mark.parametrize("kind", ["live", "topk"])
def test_loss_and_gradients(on: Any, rows: int, kind: str) -> None:
    student, teacher, b = decoder(), decoder(min(rows, 30) if kind == "topk" else rows, 8), batch()
    if rows < 30:
        b.ids.clamp_(max=rows - 1)
    source = LiveTeacher(teacher) if kind == "live" else FixedTopK(decoder(30, 8) if rows < 30 else teacher, 5)
    objective = Distillation(source, alpha=0.57, beta=0.11, temperature=0.7, divergence=JSD(0.3), on=on)
    got = total(objective(student, b), objective.counts(b))
    labels = b.next_token_labels()
    mask = b.prediction_mask() if on == "all" else labels != -100
    logits = student(b)
    nll = slow.plain_nll(logits.flatten(0, 1), torch.eye(30, dtype=torch.float64), labels.flatten())
    if kind == "live":
        kl = divergence(JSD(0.3), logits[mask], teacher(b)[mask], 0.7)
    else:
        signal = source.signal(b)
        assert isinstance(signal, TopK)
        kl = divergence(JSD(0.3), logits[mask], TopK(signal.log_probs[mask], signal.ids[mask], 0.7), 0.7)
    want = 0.57 * nll / 10 + 0.11 * 0.7**2 * kl.mean()
    assert slow.relative(got, want) < 1e-10
    parameters = list(student.parameters())
    for a, c in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        assert slow.relative(a, c) < 1e-9


def test_terms_and_counts() -> None:
    objective, b = Distillation(LiveTeacher(decoder()), alpha=0.5, beta=0.25, temperature=2.0), batch()
    terms = objective(decoder(), b)
    assert {n: (t.count, t.weight) for n, t in terms.items()} == {"nll": (10.0, 0.5), "kl": (8 + 4 + 11, 1.0)}
    assert objective.counts(b) == {"nll": 10.0, "kl": 23.0}


class Untouchable:
    """A teacher that must not be asked."""

    temperature = None

    def signal(self, b: Batch) -> TopK:
        raise AssertionError("the teacher was asked")


def test_a_weight_of_zero_skips_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    student, b = decoder(), batch()
    without = Distillation(Untouchable(), alpha=1.0, beta=0.0)
    assert list(without(student, b)) == list(without.counts(b)) == ["nll"]
    seen: list[fused.Problem] = []
    real = fused.run

    def watched(problem: fused.Problem, *rest: Any) -> Any:
        seen.append(problem)
        return real(problem, *rest)

    monkeypatch.setattr(fused, "run", watched)
    only = Distillation(LiveTeacher(decoder()), alpha=0.0, beta=1.0)
    assert list(only(student, b)) == list(only.counts(b)) == ["kl"]
    assert seen[0].labels is None


@pytest.mark.parametrize("tell", [False, True])
def test_true_counts_save_the_second_pass(tell: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    real = fused.run

    def counted(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        return real(*args)

    monkeypatch.setattr(fused, "run", counted)
    student, b, objective = decoder(), batch(), Distillation(LiveTeacher(decoder()), temperature=0.7)
    step = {"nll": 70.0, "kl": 90.0}
    terms = objective(student, b, step) if tell else objective(student, b)
    total(terms, step).backward()  # type: ignore[no-untyped-call]
    assert passes == (1 if tell else 2)


def test_the_teacher_stays_frozen_in_evaluation_mode_and_without_a_graph() -> None:
    model = decoder().train()
    teacher = LiveTeacher(model)
    model.train()  # someone's mistake
    b = batch()
    dense = teacher.signal(b)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not dense.hidden.requires_grad and dense.hidden.shape == (2, 14, 16)
    assert torch.equal(dense.hidden, teacher.signal(b).hidden)  # no dropout
    objective = Distillation(teacher)
    total(objective(decoder(), b), objective.counts(b)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in model.parameters())


def test_a_student_head_that_is_no_linear_layer() -> None:
    student, b = decoder(), batch()
    plain = Distillation(LiveTeacher(decoder()), temperature=0.7)
    want = total(plain(student, b), plain.counts(b))

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            return out

    grads = torch.autograd.grad(want, list(student.parameters()))
    student.head = Wrapped(student.head)  # type: ignore[assignment]
    torch.manual_seed(1)
    got = total(plain(student, b), plain.counts(b))
    assert slow.relative(got, want) < 1e-12
    for a, c in zip(torch.autograd.grad(got, list(student.parameters())), grads, strict=True):
        assert slow.relative(a, c) < 1e-10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"alpha": 0.0, "beta": 0.0}, "both 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"divergence": "forward-kl"}, "did you mean 'forward_kl'"),
        ({"on": "answer"}, "did you mean 'answers'"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Distillation(Untouchable(), **options)


def test_a_signal_of_another_temperature_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"made at temperature 0\.7, not 1"):
        Distillation(FixedTopK(decoder(), 3), temperature=1.0)
    assert Distillation(FixedTopK(decoder(), 3), temperature=0.7, divergence="skew_kl").on == "all"
