"""How long a training is, and which settings contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.config import build, dump, load
from limbeck.errors import ConfigError
from limbeck.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("given", "per_epoch", "ranks", "steps"),
    [
        ({"steps": 7}, 0, 1, 7),
        ({"steps": 7}, 100, 4, 7),
        ({}, 10, 1, 10),
        ({"epochs": 3}, 10, 1, 30),
        ({"epochs": 3, "accumulation": 4}, 10, 1, 8),
        ({"epochs": 3, "accumulation": 2}, 10, 2, 8),
        ({"epochs": 0.1, "accumulation": 8}, 10, 1, 1),
        ({"epochs": 0.3}, 10, 1, 3),
    ],
)
def test_length(given: dict[str, Any], per_epoch: int, ranks: int, steps: int) -> None:
    assert TrainSettings(**given).total_steps(per_epoch, ranks) == steps


def test_an_endless_stream_has_no_epoch() -> None:
    with pytest.raises(ConfigError, match="give steps"):
        TrainSettings(epochs=2).total_steps(0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 10), (0.999, 100), (1, 1), (30, 30), (500, 100)])
def test_warmup_is_a_share_or_a_number(warmup: float, steps: int) -> None:
    assert TrainSettings(warmup=warmup).warmup_steps(100) == steps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 3, "epochs": 1}, "exclude each other"),
        ({"patience": 3, "monitor": ""}, "needs a monitor"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"beta2": 1.0}, "beta2"),
        ({"precision": "fp16"}, "precision"),
        ({"learningrate": 1}, "did you mean 'learning_rate'"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(TrainSettings, given)


def test_every_field_explains_itself_and_comes_back() -> None:
    for name, field in TrainSettings.model_fields.items():
        assert field.description, name
    given = TrainSettings(steps=3, schedule="wsd", precision="bf16")
    assert load(TrainSettings, None, __import__("yaml").safe_load(dump(given))) == given
