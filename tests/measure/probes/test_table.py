"""Probes of scores, and probes as evaluations of the loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from torch import nn

from limbeck.measure.alarm import Alarm, Subject
from limbeck.measure.classes import class_columns
from limbeck.measure.probes.table import ProbeEvaluation, run_probes, score_alarms
from limbeck.measure.scores import Scores
from limbeck.train.evaluation import evaluate
from limbeck.train.settings import TrainSettings
from tests.reference.small_model import decoder


def scores(truth: list[int], predicted: list[int], **more: list[float]) -> Scores:
    columns = class_columns(truth, predicted, ("no", "yes"))
    return Scores.of([str(i) for i in range(len(truth))], **columns, **more)


def alarms(found: Scores) -> Mapping[str, Alarm]:
    return {a.name: a for a in score_alarms(found)}


def test_a_constant_answer_rings_both_bells() -> None:
    told = alarms(scores([0] * 63 + [1] * 37, [0] * 100))
    assert told["collapse"].fired and told["collapse"].value == 1
    assert told["majority"].fired and told["majority"].value == 0
    assert "accuracy 0.630 against 0.630 for always answering 'no'" in told["majority"].sentence
    assert "100 of 100 predictions are 'no', which is true of 63" in told["collapse"].sentence


def test_no_answer_at_all_is_a_collapse_too() -> None:
    told = alarms(scores([0, 1] * 10, [-1] * 20))
    assert told["collapse"].fired and "'(none of them)', which is true of 0" in told["collapse"].sentence


def test_a_good_classifier_is_silent_also_on_a_lopsided_set() -> None:
    assert not any(a.fired for a in score_alarms(scores([0, 1] * 10, [0, 1] * 9 + [1, 1])))
    lopsided = alarms(scores([0] * 97 + [1] * 3, [0] * 97 + [1] * 3))
    assert lopsided["collapse"].value == 0.97 and not lopsided["collapse"].fired and not lopsided["majority"].fired


def test_one_class_only_and_scores_without_classes_say_nothing_of_the_majority() -> None:
    assert "majority" not in alarms(scores([0] * 20, [0] * 20))
    assert score_alarms(Scores.of(["a"], nll=[1.0])) == []
    assert run_probes((), Subject()) == []


def test_class_calibration_reads_confidence_and_correctness() -> None:
    sure = alarms(scores([0, 1] * 60, [0, 0] * 60, confidence=[1.0] * 120))["class-calibration"]
    assert sure.fired and sure.value == pytest.approx(0.5) and "overconfident by 0.500" in sure.sentence
    fair = alarms(scores([0, 1] * 60, [0, 0] * 60, confidence=[0.5] * 120))["class-calibration"]
    assert not fair.fired
    assert "class-calibration" not in alarms(scores([0, 1] * 6, [0, 0] * 6, confidence=[1.0] * 12))


class Fixed:
    """A probe with one value."""

    name, threshold = "fixed", 1.0

    def __init__(self, value: float | None) -> None:
        self.value = value

    def __call__(self, subject: Subject) -> Alarm | None:
        assert subject.model is not None and not subject.model.training
        return None if self.value is None else Alarm(self.name, self.value, 1.0, self.value > 1, "it is fixed")


def test_probes_are_evaluations_of_the_loop() -> None:
    one = ProbeEvaluation([Fixed(2.0), Fixed(None)], Subject)
    assert evaluate(decoder(), [one], 3, TrainSettings(monitor=""), seed=0) == {"probe/fixed": 2.0}
    with pytest.raises(AssertionError, match="decoders"):
        one(nn.Linear(1, 1), 0)


def test_an_alarm_describes_itself() -> None:
    told = Alarm("a", 2.0, 1.0, True, "much").describe()
    assert told == {"name": "a", "value": 2.0, "threshold": 1.0, "fired": True, "sentence": "much"}
    assert np.isfinite(told["value"])
