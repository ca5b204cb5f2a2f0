from __future__ import annotations

import math

import pytest

from limbeck.errors import ConfigError
from limbeck.study.limits import excess, parse_limits, parse_objectives

KNOWN = ["bytes", "ms_per_token", "lost_generality", "accuracy"]


def test_limits_are_read_with_their_units() -> None:
    found = parse_limits("bytes <= 40MB, ms_per_token<=5, lost_generality <= 1%, accuracy >= 80 %, bytes < 2KiB", KNOWN)
    assert [(x.name, x.bound, x.most) for x in found] == [
        ("bytes", 40e6, True), ("ms_per_token", 5.0, True), ("lost_generality", 0.01, True), ("accuracy", 0.8, False),
        ("bytes", 2048.0, True),
    ]  # fmt: skip
    assert parse_limits("", KNOWN) == ()


def test_excess_is_the_share_by_which_a_limit_is_broken() -> None:
    limits = parse_limits("bytes <= 40MB, accuracy >= 80%", KNOWN)
    found = excess(limits, {"bytes": 50e6, "accuracy": 0.9})
    assert found == {"bytes <= 40MB": pytest.approx(0.25), "accuracy >= 80%": pytest.approx(-0.125)}
    assert excess(limits, {"bytes": None})["bytes <= 40MB"] == math.inf


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("byts <= 4", "did you mean 'bytes'"), ("bytes 4", "cannot be read"), ("bytes <= 4MiiB", "unit 'MiiB'"),
        ("bytes <= 4.4.4", "is no number"), ("bytes == 4", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_limits_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_limits(text, KNOWN)


def test_objectives() -> None:
    one, two = parse_objectives("maximise accuracy, minimize bytes", KNOWN)
    assert (one.sense, two.name, two.sense) == ("maximise", "bytes", "minimise")
    assert one.better(2, 1) and two.better(1, 2)
    for text, said in (
        ("accuracy", "cannot be read"),
        ("", "needs an objective"),
        ("maximise acuracy", "did you mean"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_objectives(text, KNOWN)
