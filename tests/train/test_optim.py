"""Which parameters decay, and the optimizer's state by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import CheckpointError
from limbeck.train import optim
from limbeck.train.optim import adamw, decayed, load_state, state_tensors, sweep
from limbeck.train.settings import TrainSettings
from tests.reference.training import same, tiny


def test_matrices_decay_and_nothing_else() -> None:
    names, matrices = decayed(tiny()), ("attention.qkv", "attention.out", "ffn.up", "ffn.down")
    assert names == {f"blocks.{i}.{part}.weight" for i in range(2) for part in matrices}
    assert decayed(tiny(), decay_embeddings=True) == names | {"embed.weight", "positions.weight"}


def test_an_untied_head_is_a_matrix_and_a_frozen_one_is_nothing() -> None:
    model = tiny(tied=False)
    assert "head.weight" in decayed(model)
    model.head.weight.requires_grad_(False)
    assert "head.weight" not in decayed(model)


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_one_step_is_the_written_out_rule(decay_embeddings: bool) -> None:
    """AdamW's first step moves by lr * sign(g) after shrinking the decayed by lr * wd; a tied weight once."""
    model = tiny().double()
    trained = dict(model.named_parameters())
    assert "head.weight" not in trained
    settings = TrainSettings(learning_rate=0.01, weight_decay=0.5, eps=1e-30)
    names = decayed(model, decay_embeddings)
    optimizer = adamw(trained, names, settings)
    before = {n: p.detach().clone() for n, p in trained.items()}
    for p in trained.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for name, p in trained.items():
        shrunk = before[name] * (1 - 0.01 * 0.5 if name in names else 1.0)
        torch.testing.assert_close(p.detach(), shrunk - 0.01 * p.grad.sign(), rtol=1e-9, atol=1e-12)


def test_a_model_of_one_kind_of_parameter_has_one_group() -> None:
    trained = {"bias": torch.nn.Parameter(torch.zeros(3))}
    assert len(adamw(trained, set(), TrainSettings()).param_groups) == 1


def test_state_comes_back_bit_for_bit() -> None:
    model = tiny()
    trained = dict(model.named_parameters())
    one = adamw(trained, decayed(model), TrainSettings())
    assert state_tensors(one, trained) == {}
    for _ in range(3):
        for p in trained.values():
            p.grad = torch.randn_like(p)
        one.step()
    state = {n: t.clone() for n, t in state_tensors(one, trained).items()}
    assert state["step/embed.weight"] == 3
    twin = tiny()
    twin.load_state_dict(model.state_dict())
    others = dict(twin.named_parameters())
    other = adamw(others, decayed(twin), TrainSettings())
    load_state(other, others, state)
    assert same(state_tensors(other, others), state)
    for name, p in others.items():
        p.grad = trained[name].grad
    one.step()
    other.step()
    assert same(dict(model.named_parameters()), others)


def test_a_state_that_does_not_fit_is_refused() -> None:
    model = tiny()
    trained = dict(model.named_parameters())
    optimizer = adamw(trained, decayed(model), TrainSettings())
    wrong = {"step/embed.weight": torch.tensor(1.0), "exp_avg/embed.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"exp_avg/embed\.weight"):
        load_state(optimizer, trained, wrong)
    with pytest.raises(KeyError, match=r"exp_avg/embed\.weight"):
        load_state(optimizer, trained, {"step/embed.weight": torch.tensor(1.0)})


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_a_sweep_is_a_step_of_torch(block: int, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Casting, clipping, stepping and rounding block by block: what torch's own steps give, moments included."""
    monkeypatch.setattr(optim, "_BLOCK", block)
    settings = TrainSettings(steps=3, learning_rate=0.1, weight_decay=0.2)
    start = {"a": torch.randn(5, 8), "b": torch.randn(8), "c": torch.randn(3, 3), "idle": torch.randn(2)}
    sides = []
    for _ in range(2):
        trained = {n: nn.Parameter(x.clone()) for n, x in start.items()}
        sides.append((trained, adamw(trained, {"a", "c"}, settings)))
    (ours, own), (theirs, plain) = sides
    copies = {n: torch.zeros_like(x, dtype=torch.bfloat16) for n, x in start.items()}
    for _ in range(3):
        gradients = {n: torch.randn_like(x).bfloat16() for n, x in start.items() if n != "idle"}
        gradients["c"] = gradients["c"].t()
        for name, gradient in gradients.items():
            theirs[name].grad = gradient.float().contiguous()  # torch's own kernel takes any layout for this one
        norm = nn.utils.get_total_norm([g.float() for g in gradients.values()])
        divisor = ((norm + 1e-6) / clip).clamp(min=1) if clip else torch.ones(())
        if clip:
            nn.utils.clip_grads_with_norm_(theirs.values(), clip, norm)
        plain.step()
        sweep(own, ours, gradients, copies, divisor)
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-6, atol=1e-7)
        if name != "idle":
            assert torch.equal(copies[name], x.detach().bfloat16())
    mine, torchs = state_tensors(own, ours), state_tensors(plain, theirs)
    assert mine.keys() == torchs.keys()
    for key, value in mine.items():
        torch.testing.assert_close(value, torchs[key], rtol=1e-5, atol=1e-8)
