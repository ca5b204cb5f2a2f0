"""Preference losses against formulas written out, their gradients against autograd's and against differences."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.losses.preference import log_ratio_margin, preference_loss, rewards

POLICY = torch.tensor([[-12.0, -20.0], [-31.0, -7.5], [-3.0, -3.0], [-900.0, -2.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-14.0, -19.0], [-30.0, -9.0], [-3.0, -3.0], [-5.0, -1000.0]], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_sigmoid_is_equation_7_with_turned_labels(beta: float, smoothing: float) -> None:
    got = preference_loss(POLICY[:3], REFERENCE[:3], beta=beta, label_smoothing=smoothing)
    for i in range(3):
        (c, r), (rc, rr) = POLICY[i].tolist(), REFERENCE[i].tolist()
        h = beta * ((c - rc) - (r - rr))
        want = -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))
        assert got[i].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_ipo_is_the_square_of_the_distance_to_its_margin(beta: float) -> None:
    got = preference_loss(POLICY, REFERENCE, beta=beta, loss="ipo")
    for i in range(len(POLICY)):
        (c, r), (rc, rr) = POLICY[i].tolist(), REFERENCE[i].tolist()
        assert got[i].item() == pytest.approx((c - r - rc + rr - 1 / (2 * beta)) ** 2, rel=1e-12)


def test_equal_models_give_log_2_and_the_square_of_half_of_one_over_beta() -> None:
    same = POLICY.float()
    assert torch.equal(preference_loss(same, same, beta=0.1), torch.full((4,), math.log(2)))
    smooth = preference_loss(same, same, beta=0.1, label_smoothing=0.2)
    assert torch.allclose(smooth, torch.full((4,), math.log(2)))
    assert torch.allclose(preference_loss(same, same, beta=0.1, loss="ipo"), torch.full((4,), 25.0))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"loss": "ipo"}])
def test_gradients_are_those_of_small_differences_and_opposite_on_the_two_sides(options: dict[str, object]) -> None:
    policy = POLICY[:3].clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: preference_loss(x, REFERENCE[:3], beta=0.3, **options), policy)  # type: ignore[arg-type]
    preference_loss(policy, REFERENCE[:3], beta=0.3, **options).sum().backward()  # type: ignore[arg-type]
    assert policy.grad is not None and (policy.grad != 0).all()
    assert torch.allclose(policy.grad[:, 0], -policy.grad[:, 1])


def test_far_off_pairs_stay_finite_and_keep_their_gradient() -> None:
    policy = POLICY.float().requires_grad_()
    loss = preference_loss(policy, REFERENCE.float(), beta=1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and loss[3].item() == pytest.approx(1893.0)
    assert policy.grad is not None and policy.grad[3].tolist() == [-1.0, 1.0]


def test_rewards_and_margin() -> None:
    assert rewards(POLICY, REFERENCE, 0.1)[0].tolist() == pytest.approx([0.2, -0.1])
    assert log_ratio_margin(POLICY, REFERENCE).tolist() == pytest.approx([3.0, -2.5, 0.0, -1893.0])


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": 0.1, "label_smoothing": 0.5}, {"beta": 1.0, "loss": "ipo", "label_smoothing": 0.1}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="beta|smoothing"):
        preference_loss(POLICY, REFERENCE, **options)  # type: ignore[arg-type]
