from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch, Example, collate
from limbeck.errors import ConfigError
from limbeck.losses.terms import total
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from tests.reference import losses as slow

V = 30


def decoder() -> Decoder:
    model = Decoder(DecoderConfig(vocab_size=V, context=16, layers=2, hidden_size=16, heads=2)).double()
    with torch.no_grad():
        model.embed.weight.mul_(10)
    return model


def batch() -> Batch:
    rng = np.random.default_rng(0)
    shapes = [(9, 4), (5, 0), (12, 11)]
    examples = [
        Example(i, str(i), rng.integers(0, V, n, dtype=np.int32), np.arange(n) >= p) for i, (n, p) in enumerate(shapes)
    ]
    return collate([[examples[0], examples[1]], [examples[2]]])


def plain(model: Decoder, b: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = model(b).flatten(0, 1), b.next_token_labels().flatten()
    identity = torch.eye(V, dtype=torch.float64)
    return slow.plain_nll(logits, identity, labels), slow.plain_z(logits, identity, labels)


def test_sum_count_and_gradient() -> None:
    model, b = decoder(), batch()
    terms = NextToken()(model, b)
    nll, _ = plain(model, b)
    assert list(terms) == ["nll"]
    assert (terms["nll"].count, terms["nll"].weight) == (5 + 4 + 1, 1.0)
    assert slow.relative(terms["nll"].sum, nll) < 1e-12
    parameters = list(model.parameters())
    for a, c in zip(
        torch.autograd.grad(terms["nll"].sum, parameters), torch.autograd.grad(nll, parameters), strict=True
    ):
        assert slow.relative(a, c) < 1e-10


def test_z_loss_is_a_term_of_its_own() -> None:
    model, b, objective = decoder(), batch(), NextToken(z_loss=0.01)
    terms = objective(model, b)
    nll, z = plain(model, b)
    assert terms["z"].weight == 0.01
    loss, want = total(terms, objective.counts(b)), (nll + 0.01 * z) / 10
    assert slow.relative(loss, want) < 1e-12
    parameters = list(model.parameters())
    for a, c in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters), strict=True):
        assert slow.relative(a, c) < 1e-10


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_counts_need_no_forward_and_are_those_of_the_terms(z_loss: float) -> None:
    objective, b = NextToken(z_loss), batch()
    assert objective.counts(b) == {name: t.count for name, t in objective(decoder(), b).items()}


def test_a_head_that_is_no_linear_layer() -> None:
    model, b = decoder(), batch()
    model.head = slow.Scaled(16, V, torch.float64)  # type: ignore[assignment]
    got, (want, _) = NextToken()(model, b)["nll"].sum, plain(model, b)
    assert slow.relative(got, want) < 1e-12
    parameters = list(model.parameters())
    used = dict(allow_unused=True)  # the embedding is tied no more, but every parameter still has its gradient
    for a, c in zip(
        torch.autograd.grad(got, parameters, **used), torch.autograd.grad(want, parameters, **used), strict=True
    ):
        assert slow.relative(a, c) < 1e-10


def test_checkpointing_changes_nothing() -> None:
    model, b = decoder().train(), batch()
    parameters = list(model.parameters())
    plainly = torch.autograd.grad(NextToken()(model, b)["nll"].sum, parameters)
    model.checkpointing = True
    for a, c in zip(torch.autograd.grad(NextToken()(model, b)["nll"].sum, parameters), plainly, strict=True):
        assert slow.relative(a, c) < 1e-12


def test_a_frozen_head_takes_no_gradient() -> None:
    model, b = decoder(), batch()
    model.head.weight = torch.nn.Parameter(model.embed.weight.detach().clone(), requires_grad=False)
    NextToken()(model, b)["nll"].sum.backward()  # type: ignore[no-untyped-call]
    assert model.head.weight.grad is None and model.blocks[0].ffn.up.weight.grad is not None


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_bad_weight_is_an_error(weight: float) -> None:
    with pytest.raises(ConfigError, match="z_loss is"):
        NextToken(weight)
