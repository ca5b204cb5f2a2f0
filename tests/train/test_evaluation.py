"""Evaluations are merged, seeded by the step, and leave the model in training."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.train.evaluation import evaluate
from limbeck.train.settings import TrainSettings
from tests.reference.training import HeldOut, tiny

FREE = TrainSettings(monitor="")


def test_values_are_merged_and_drawn_from_the_step() -> None:
    model = tiny(dropout=0.5).train()
    first = evaluate(model, [HeldOut(), lambda m, s: {"step": s}], 4, FREE, seed=1)
    torch.rand(3)
    assert evaluate(model, [HeldOut(), lambda m, s: {"step": s}], 4, FREE, seed=1) == first
    assert first.keys() == {"valid/nll", "valid/draw", "step"} and first["step"] == 4.0
    assert evaluate(model, [HeldOut()], 5, FREE, seed=1)["valid/draw"] != first["valid/draw"]
    assert model.training


def test_no_gradient_is_kept() -> None:
    evaluate(tiny(), [lambda m, s: {"grad": float(torch.is_grad_enabled())}], 0, FREE, 0)
    assert evaluate(tiny(), [lambda m, s: {"grad": float(torch.is_grad_enabled())}], 0, FREE, 0) == {"grad": 0.0}


def test_names_must_be_apart_and_the_monitor_among_them() -> None:
    with pytest.raises(ConfigError, match="two evaluations return 'a'"):
        evaluate(tiny(), [lambda m, s: {"a": 1.0}] * 2, 0, FREE, 0)
    with pytest.raises(ConfigError, match=r"'valid/nll' is not measured \(there is valid/loss\)"):
        evaluate(tiny(), [lambda m, s: {"valid/loss": 1.0}], 0, TrainSettings(), 0)
    with pytest.raises(ConfigError, match="did you mean 'valid/nll'"):
        evaluate(tiny(), [HeldOut()], 0, TrainSettings(monitor="val/nll"), 0)
    with pytest.raises(ConfigError, match="there is nothing"):
        evaluate(tiny(), [lambda m, s: {}], 0, TrainSettings(), 0)
