"""A task never trained on, beside the base: a fall that a test agrees with rings, so does a collapse to one answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from limbeck.errors import DataError
from limbeck.measure.alarm import Alarm, Subject
from limbeck.measure.classes import class_columns
from limbeck.measure.probes.zero_shot import ZeroShot
from limbeck.measure.scores import Scores
from limbeck.model.config import Classes
from limbeck.model.heads import with_classes
from tests.reference.small_model import decoder


def scores(truth: list[int], said: list[int]) -> Scores:
    return Scores.of([f"{i}" for i in range(len(truth))], **class_columns(truth, said, ("no", "yes")))


def asked(truth: list[int], before: list[int], now: list[int]) -> Alarm:
    probe = ZeroShot(lambda model: scores(truth, now), scores(truth, before), "pairs")
    alarm = probe(Subject(decoder()))
    assert alarm is not None
    return alarm


TRUTH = [0, 1] * 20


def with_errors(count: int) -> list[int]:
    return [1 - t if i < count else t for i, t in enumerate(TRUTH)]


@pytest.mark.parametrize("errors", range(2, 10))
def test_a_fall_rings_exactly_where_the_test_of_changed_items_agrees(errors: int) -> None:
    alarm = asked(TRUTH, TRUTH, with_errors(errors))
    assert alarm.value == pytest.approx(errors / 40)
    # all changed items were lost: half to the power of their number
    assert alarm.fired == (errors / 40 > 0.05 and binom.pmf(errors, errors, 0.5) <= 0.05)


def test_what_is_lost_and_won_alike_does_not_ring() -> None:
    before = with_errors(10)
    now = [1 - t if 10 <= i < 20 else t for i, t in enumerate(TRUTH)]
    alarm = asked(TRUTH, before, now)
    assert alarm.value == 0 and not alarm.fired


def test_the_published_case_one_answer_to_all_at_a_kept_accuracy_rings() -> None:
    truth = [0] * 63 + [1] * 37
    before = [0] * 40 + [1] * 23 + [1] * 23 + [0] * 14  # 0.63, and both answers
    alarm = asked(truth, before, [0] * 100)
    assert alarm.value == pytest.approx(0) and alarm.fired
    assert "no 100, yes 0 (entropy 0.00 nats)" in alarm.sentence and "0.630 for one answer to all" in alarm.sentence


def test_a_base_that_gave_one_answer_has_nothing_to_collapse() -> None:
    assert not asked(TRUTH, [0] * 40, [0] * 40).fired


def test_items_are_paired_by_id_not_by_place() -> None:
    base = scores(TRUTH, with_errors(10))
    backwards = base.select([f"{i}" for i in reversed(range(40))])
    alarm = ZeroShot(lambda model: backwards, base, "pairs")(Subject(decoder()))
    assert alarm is not None and alarm.value == 0 and not alarm.fired


def test_a_head_of_classes_and_a_base_that_cannot_answer_are_silent() -> None:
    base = scores(TRUTH, TRUTH)
    model = with_classes(decoder(), Classes(labels=("a", "b"), pool="last"))
    assert ZeroShot(lambda model: base, base, "pairs")(Subject(model)) is None
    assert ZeroShot(lambda model: base, base, "pairs")(Subject()) is None

    def refuse(model: object) -> Scores:
        raise DataError("the prompts do not fit")

    assert ZeroShot.of(refuse, decoder(), "pairs") is None
    made = ZeroShot.of(lambda model: base, decoder(), "pairs")
    assert made is not None and np.array_equal(made.base["correct"], base["correct"])
