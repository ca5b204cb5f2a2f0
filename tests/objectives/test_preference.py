"""The preference objective against a slow one: losses, metrics, references, packing and accumulation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.batch import IGNORE
from limbeck.data.pairs import PairExample, collate_pairs
from limbeck.errors import ConfigError, DataError
from limbeck.losses.terms import add_counts, total
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import AdapterOff, Frozen, Stored, pair_log_probs
from limbeck.techniques.lora import LoRA
from limbeck.techniques.lora_layer import switched_off, untouched
from tests.reference.pairs import pairs, slow_log_prob, slow_loss
from tests.reference.training import tiny

BETA = 0.2


def policy_and_start(**changes: Any) -> tuple[Any, Any]:
    start = tiny(**changes).double()
    policy = copy.deepcopy(start)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return policy, start


def gradients(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def loss_of(objective: Preference, model: nn.Module, some: Sequence[PairExample]) -> torch.Tensor:
    batch = collate_pairs([[pair] for pair in some])
    return total(objective(model, batch), objective.counts(batch))


@pytest.mark.parametrize("shape", [{}, {"positions": "rope", "norm": "rms", "tied": False}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_every_gradient_are_those_of_the_slow_one(shape: dict[str, Any], smoothing: float) -> None:
    policy, start = policy_and_start(**shape)
    some = pairs()
    objective = Preference(Frozen(start), BETA, label_smoothing=smoothing)
    got, want = loss_of(objective, policy, some), slow_loss(policy, start, some, BETA, smoothing)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for ours, theirs in zip(gradients(got, policy), gradients(want, policy), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_every_term_is_the_sum_that_it_says() -> None:
    policy, start = policy_and_start()
    some = pairs(8, seed=3)
    terms = Preference(Frozen(start), BETA)(policy, collate_pairs([[pair] for pair in some]))
    ours = [[slow_log_prob(policy, side).item() for side in (p, p.rejected)] for p in some]
    theirs = [[slow_log_prob(start, side).item() for side in (p, p.rejected)] for p in some]
    tokens = [(p.predictions, p.rejected.predictions) for p in some]
    want = dict.fromkeys(terms, 0.0)
    for (c, r), (rc, rr), (n, m) in zip(ours, theirs, tokens, strict=True):
        margin = BETA * (c - rc - r + rr)
        want["preference"] += np.log1p(np.exp(-margin))
        want["accuracy"] += float(margin > 0)
        want["margin"] += margin
        want["reward_chosen"] += BETA * (c - rc)
        want["reward_rejected"] += BETA * (r - rr)
        want["accuracy_per_token"] += float(c / n > r / m)
        for name, a, b in (("log_prob", c, r), ("reference", rc, rr)):
            for ending in ("", "_per_token"):
                want[f"{name}_chosen{ending}"] += a
                want[f"{name}_rejected{ending}"] += b
    assert {name: t.sum.item() for name, t in terms.items()} == pytest.approx(want)
    chosen, rejected = (float(sum(column)) for column in zip(*tokens, strict=True))
    for name, term in terms.items():
        per_token = name.endswith("_per_token") and name != "accuracy_per_token"
        assert term.count == (8 if not per_token else chosen if "chosen" in name else rejected)
        assert term.weight == (1.0 if name == "preference" else 0.0)
        assert term.sum.requires_grad == (name == "preference")


def test_averaged_log_probabilities_weigh_each_completion_by_its_tokens() -> None:
    policy, start = policy_and_start()
    some = pairs(5, seed=4)
    got = loss_of(Preference(Frozen(start), 2.0, average=True), policy, some).item()
    want = []
    for p in some:
        ratio = [
            (slow_log_prob(policy, side) - slow_log_prob(start, side)).item() / side.predictions
            for side in (p, p.rejected)
        ]
        want.append(np.log1p(np.exp(-2.0 * (ratio[0] - ratio[1]))))
    assert got == pytest.approx(np.mean(want), rel=1e-12)


def test_ipo_pulls_to_its_margin() -> None:
    policy, start = policy_and_start()
    some = pairs(5, seed=5)
    want = np.mean([
        ((slow_log_prob(policy, p) - slow_log_prob(policy, p.rejected)
          - slow_log_prob(start, p) + slow_log_prob(start, p.rejected)).item() - 1 / (2 * BETA)) ** 2
        for p in some
    ])  # fmt: skip
    assert loss_of(Preference(Frozen(start), BETA, loss="ipo"), policy, some).item() == pytest.approx(want, rel=1e-12)


def test_packed_pairs_have_the_losses_of_the_same_pairs_alone() -> None:
    policy, start = policy_and_start(context=64)
    some = pairs(7, seed=6)
    objective = Preference(Frozen(start), BETA)
    packed = collate_pairs([some[:3], some[3:4], some[4:]])
    assert packed.pairs == 7 and packed.chosen.ids.shape[0] == 3
    alone = torch.stack([pair_log_probs(policy, collate_pairs([[p]]))[0] for p in some])
    assert torch.allclose(pair_log_probs(policy, packed), alone, rtol=1e-12, atol=1e-12)
    got = total(objective(policy, packed), objective.counts(packed))
    assert got.item() == pytest.approx(slow_loss(policy, start, some, BETA).item(), rel=1e-12)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (3, 4), (1,) * 7])
def test_micro_batches_give_the_gradient_of_the_full_batch(sizes: tuple[int, ...]) -> None:
    policy, start = policy_and_start()
    some = pairs(7, seed=7)
    objective = Preference(Frozen(start), BETA, label_smoothing=0.1)
    whole = gradients(loss_of(objective, policy, some), policy)
    edges = np.cumsum([0, *sizes])
    batches = [collate_pairs([[p] for p in some[a:b]]) for a, b in zip(edges, edges[1:], strict=False)]
    counts = add_counts(objective.counts(b) for b in batches)
    assert counts["preference"] == 7
    parts = [gradients(total(objective(policy, b, counts), counts), policy) for b in batches]
    for want, got in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.allclose(sum(got), want, rtol=1e-9, atol=1e-13)  # type: ignore[arg-type]


def test_counts_need_no_forward_and_are_those_of_the_terms() -> None:
    policy, start = policy_and_start()
    batch = collate_pairs([[p] for p in pairs(4)])
    objective = Preference(Frozen(start), BETA)
    assert objective.counts(batch) == {name: term.count for name, term in objective(policy, batch).items()}


def test_the_frozen_reference_is_a_copy_that_nothing_moves() -> None:
    policy = tiny(dropout=0.3).train()
    frozen = Frozen(policy)
    batch = collate_pairs([[p] for p in pairs(3)])
    before = frozen.log_probs(policy, batch)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    assert torch.equal(frozen.log_probs(policy, batch), before) and not before.requires_grad
    assert not any(p.requires_grad for p in frozen.model.parameters()) and policy.training
    narrow = frozen.log_probs(copy.deepcopy(policy).bfloat16(), batch)
    assert torch.allclose(narrow, before, rtol=0.05) and not torch.equal(narrow, before)
    assert next(frozen.model.parameters()).dtype == torch.float32  # the copy itself was not rounded


def test_the_adapter_switched_off_is_the_start_without_a_second_copy() -> None:
    start = tiny().double()
    policy = LoRA(rank=2, dropout=0.5).apply(copy.deepcopy(start)).train()
    assert untouched(policy)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_b" in name:
                p.normal_()
    assert not untouched(policy)
    batch = collate_pairs([[p] for p in pairs(5)])
    off = AdapterOff(switched_off).log_probs(policy, batch)
    assert torch.allclose(off, Frozen(start).log_probs(policy, batch), rtol=1e-12) and not off.requires_grad
    assert policy.training and all(m.training for m in policy.modules())
    policy.eval()
    assert not torch.allclose(pair_log_probs(policy, batch), off)  # it is on again


def test_an_adapter_beside_trained_weights_is_no_reference() -> None:
    policy = LoRA(rank=2).apply(tiny())
    policy.norm.weight.requires_grad_()
    assert not untouched(policy) and not untouched(tiny())


def test_stored_log_probabilities_are_found_by_row_and_tokens_and_refused_when_stale() -> None:
    some = pairs(4)
    policy = tiny()
    batch = collate_pairs([[p] for p in some])
    want = Frozen(policy).log_probs(policy, batch)
    stored = Stored({p.key: (a, b) for p, (a, b) in zip(some, want.tolist(), strict=True)}, "ref.json")
    mixed = collate_pairs([[some[2], some[0]], [some[3]]])
    assert torch.equal(stored.log_probs(policy, mixed), want[[2, 0, 3]])
    changed = collate_pairs([[pairs(4, seed=1)[1]]])  # row r1 with other tokens
    with pytest.raises(DataError, match=r"row r1 is not among .* in ref\.json"):
        stored.log_probs(policy, changed)


def test_only_the_completion_is_scored() -> None:
    batch = collate_pairs([[p] for p in pairs(6)])
    for side, name in ((batch.chosen, "chosen"), (batch.rejected, "rejected")):
        labels = side.next_token_labels()
        for row, pair in enumerate(pairs(6)):
            example = pair if name == "chosen" else pair.rejected
            first = int(np.flatnonzero(example.target)[0])
            assert (labels[row, : first - 1] == IGNORE).all()
            assert labels[row, first - 1 : len(example) - 1].tolist() == example.ids[first:].tolist()


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": float("inf")}, {"label_smoothing": 0.5}, {"loss": "ipo", "label_smoothing": 0.1}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="beta|label_smoothing"):
        Preference(Frozen(tiny()), **options)
