from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import mean
from limbeck.study.quiet import flips, quiet_failures
from tests.reference.finished_arms import SPEED, Arm

ACCURACY, CHRF = mean("correct", name="accuracy"), mean("chrf", name="chrF")


def made(name: str, correct: np.ndarray, chrf: np.ndarray, **more: Any) -> Arm:
    ids = [f"i{n}" for n in range(len(correct))]
    report = {"alarms": [], "cost": {"disk_bytes": 1000}} | more
    return Arm(name, name, [report], [Scores.of(ids, correct=correct, chrf=chrf)], (ACCURACY, CHRF))


RNG = np.random.default_rng(0)
RIGHT = (RNG.random(300) < 0.8).astype(float)
CHARS = RNG.normal(40, 5, size=300)
BASE = made("base", RIGHT, CHARS)


def test_a_figure_that_fell_while_the_task_held_is_listed() -> None:
    broken = made("broken", RIGHT, CHARS - 5 + RNG.normal(size=300))
    fine = made("fine", RIGHT, CHARS + RNG.normal(size=300))
    rows = quiet_failures(BASE, [broken, fine], ACCURACY, margin=0.05)
    assert [(r.arm, r.held, r.broke) for r in rows] == [("broken", "accuracy kept within 5%", "chrF")]
    assert rows[0].words.startswith("40")


def test_a_loud_failure_is_not_a_quiet_one() -> None:
    loud = made("loud", RIGHT * (RNG.random(300) < 0.5), CHARS - 5)
    assert quiet_failures(BASE, [loud], ACCURACY) == []


def test_alarms_count_where_the_origin_is_silent() -> None:
    alarm = {"name": "stop", "fired": True, "sentence": "3 of 8 texts stopped"}
    rows = quiet_failures(BASE, [made("a", RIGHT, CHARS, alarms=[alarm])], ACCURACY)
    assert [(r.broke, r.words) for r in rows] == [("stop", "3 of 8 texts stopped")]
    loud_base = made("base", RIGHT, CHARS, alarms=[alarm])
    assert quiet_failures(loud_base, [made("a", RIGHT, CHARS, alarms=[alarm])], ACCURACY) == []


@pytest.mark.parametrize(("size", "fastest", "expected"), [(500, 3.0, ["speed"]), (2000, 3.0, []), (500, 1.2, [])])
def test_a_smaller_model_that_is_slower(size: int, fastest: float, expected: list[str]) -> None:
    fast = {"disk_bytes": 1000, "speed": SPEED}
    slow = {"disk_bytes": size, "speed": SPEED | {"decode_ms_fastest": fastest, "decode_ms_per_token": 3.5}}
    base = made("base", RIGHT, CHARS, cost=fast)
    assert [r.broke for r in quiet_failures(base, [made("a", RIGHT, CHARS, cost=slow)], ACCURACY)] == expected


def test_arms_of_other_items_are_passed_over_and_doubt_is_said() -> None:
    few = Arm("few", "few", [{}], [Scores.of(["x"], correct=[1.0], chrf=[1.0])], (ACCURACY, CHRF))
    assert quiet_failures(BASE, [few], ACCURACY) == []
    mixed = RIGHT.copy()
    mixed[:30] = 1 - mixed[:30]
    alarm = {"name": "stop", "fired": True, "sentence": "s"}
    row = quiet_failures(BASE, [made("a", mixed, CHARS, alarms=[alarm])], ACCURACY)
    assert not row or "not shown to be worse" in row[0].held


def test_flips_are_counted_by_item() -> None:
    a = Scores.of(["1", "2", "3"], correct=[1, 0, 1])
    b = Scores.of(["3", "2", "1"], correct=[1, 1, 0])
    assert flips(a, b) == (1, 1)
    with pytest.raises(DataError):
        flips(a, Scores.of(["1"], correct=[1]))
